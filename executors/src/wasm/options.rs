//! How guests are run, as the handler's options and a container's annotations say. docs/wasm.md has the table for users.

use std::net::{IpAddr, SocketAddr};

use oci_spec::runtime::LinuxResources;
use runner::{Destination, Host, Network, PROPOSALS, Preopen, Settings};

use super::cache::bound;
use crate::bundle::Bundle;
use crate::error::{Result, bail};

/// What begins the names of annotations: the rest is an option's name in small letters, `network` for `WasmNetwork`.
const PREFIX: &str = "io.containerd.hybrid.wasm.";

/// What begins the names of annotations that give a value of `wasi:config`: the rest is its key.
const CONFIG: &str = "config.";

/// What the runtime options say of WebAssembly. The default is what holds when they say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmOptions {
    /// Whether programs of WASI 0.3 are run.
    pub(super) wasi03: bool,
    /// How large the cache of precompiled code may be, in bytes.
    pub(super) cache_size: Option<u64>,
    pub(super) settings: Settings,
    preopens: Preopens,
}

/// Which folders a guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Preopens {
    /// Those in [`Settings`].
    Listed,
    /// The spec's mounts.
    Mounts,
}

impl Default for WasmOptions {
    fn default() -> Self {
        WasmOptions { wasi03: true, cache_size: None, settings: Settings::default(), preopens: Preopens::Listed }
    }
}

/// Sets an option from its value; the error says what the value should be.
type Set = fn(&mut WasmOptions, &str) -> Result<(), String>;

/// An option: its name among the runtime options, the annotation that goes before it, if any, and what it does.
struct Key {
    option: &'static str,
    annotation: Option<&'static str>,
    set: Set,
}

/// Without an annotation is what the node's administrator has to answer for.
const KEYS: [Key; 11] = [
    Key { option: "WasmCacheSize", annotation: None, set: |o, v| size(v).map(|n| o.cache_size = Some(n)) },
    Key {
        option: "WasmCoredump",
        annotation: Some("coredump"),
        set: |o, v| folder(v).map(|f| o.settings.coredump = f),
    },
    Key {
        option: "WasmHttpAddress",
        annotation: Some("http-address"),
        set: |o, v| address(v).map(|a| o.settings.http.address = Some(a)),
    },
    Key {
        option: "WasmHttpDrain",
        annotation: Some("http-drain"),
        set: |o, v| number(v, 3600).map(|n| o.settings.http.drain = Some(n)),
    },
    Key {
        option: "WasmHttpRequests",
        annotation: Some("http-requests"),
        set: |o, v| number(v, u32::MAX).map(|n| o.settings.http.requests = Some(n)),
    },
    Key {
        option: "WasmMetricsAddress",
        annotation: Some("metrics-address"),
        set: |o, v| address(v).map(|a| o.settings.metrics = Some(a)),
    },
    Key { option: "WasmNetwork", annotation: Some("network"), set: |o, v| network(v).map(|n| o.settings.network = n) },
    Key { option: "WasmPerfMap", annotation: Some("perf-map"), set: |o, v| flag(v).map(|f| o.settings.perf_map = f) },
    Key { option: "WasmPreopens", annotation: Some("preopens"), set: preopens },
    Key { option: "WasmProposals", annotation: None, set: |o, v| proposals(v).map(|p| o.settings.proposals = p) },
    Key { option: "WasmWasi03", annotation: None, set: |o, v| flag(v).map(|f| o.wasi03 = f) },
];

impl WasmOptions {
    /// The names of the runtime options.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KEYS.iter().map(|key| key.option)
    }

    /// Sets the runtime option of that name; a boolean is `true` or `false`.
    ///
    /// # Errors
    /// InvalidArgument for what is not known, with what would be.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(key) = KEYS.iter().find(|key| key.option == name) else {
            bail!(InvalidArgument, "unknown option {name:?}");
        };
        match (key.set)(self, value) {
            Ok(()) => Ok(()),
            Err(wanted) => bail!(InvalidArgument, "{name}: {value:?} given, {wanted} expected"),
        }
    }

    /// Follows what is said of a container's memory; nothing, or zero, leaves it as it is, and less is no limit.
    pub(crate) fn limit(&mut self, resources: Option<&LinuxResources>) {
        let limit = resources.and_then(|resources| resources.memory().as_ref()?.limit());
        if let Some(limit) = limit.filter(|limit| *limit != 0) {
            self.settings.memory = u64::try_from(limit).ok().map(share);
        }
    }

    /// The options for one container: what its annotations say goes before, and its mounts are known.
    ///
    /// # Errors
    /// InvalidArgument for an annotation that is not known, or whose value is not.
    pub(crate) fn of(&self, bundle: &Bundle) -> Result<WasmOptions> {
        let mut options = self.clone();
        let annotations = bundle.spec().annotations().iter().flatten();
        for (name, value) in annotations.filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value))) {
            if let Some(key) = name.strip_prefix(CONFIG).filter(|key| !key.is_empty()) {
                options.settings.config.insert(key.to_owned(), value.clone());
                continue;
            }
            let Some(key) = KEYS.iter().find(|key| key.annotation == Some(name)) else {
                let known: Vec<&str> = KEYS.iter().filter_map(|key| key.annotation).chain(["config.KEY"]).collect();
                bail!(InvalidArgument, "annotation {PREFIX}{name}: not known; known: {}", known.join(", "));
            };
            if let Err(wanted) = (key.set)(&mut options, value) {
                bail!(InvalidArgument, "annotation {PREFIX}{name}: {value:?} given, {wanted} expected");
            }
        }
        let limit = bundle.linux().resources().as_ref().and_then(|r| r.memory().as_ref()?.limit());
        options.settings.memory =
            limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0).map(share);
        if options.preopens == Preopens::Mounts {
            options.settings.preopens = mounts(bundle);
            options.preopens = Preopens::Listed;
        }
        Ok(options)
    }
}

/// A folder in the container, or none.
fn folder(value: &str) -> Result<Option<String>, String> {
    match value {
        "none" => Ok(None),
        path if path.starts_with('/') => Ok(Some(path.to_owned())),
        _ => Err("an absolute path or none".to_owned()),
    }
}

fn address(value: &str) -> Result<SocketAddr, String> {
    value.parse().map_err(|_| "ADDRESS:PORT (IPv6 in brackets)".to_owned())
}

fn number(value: &str, most: u32) -> Result<u32, String> {
    value.parse().ok().filter(|n| (1..=most).contains(n)).ok_or_else(|| format!("a number from 1 to {most}"))
}

fn size(value: &str) -> Result<u64, String> {
    bound::parse(value).ok_or_else(|| bound::WANTED.to_owned())
}

fn flag(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true or false".to_owned())
}

/// The parts of a list, separated by commas or spaces.
fn parts(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ', '\n', '\t']).filter(|part| !part.is_empty())
}

fn proposals(value: &str) -> Result<Vec<String>, String> {
    if let Some(unknown) = parts(value).find(|part| !PROPOSALS.contains(part)) {
        return Err(format!("instead of {unknown:?} any of {}", PROPOSALS.join(", ")));
    }
    let mut proposals: Vec<String> = parts(value).map(str::to_owned).collect();
    // The same ones are the same code, however they are written.
    proposals.sort_unstable();
    proposals.dedup();
    Ok(proposals)
}

fn network(value: &str) -> Result<Network, String> {
    match value {
        "none" => Ok(Network::None),
        "pod" => Ok(Network::Pod),
        _ => {
            let list: Option<Vec<Destination>> = parts(value).map(destination).collect();
            list.filter(|list| !list.is_empty()).map(Network::Only).ok_or_else(|| {
                "none, pod or a list of HOST:PORT (a name, an address or ADDRESS/BITS, and a port or *)".to_owned()
            })
        }
    }
}

/// `HOST:PORT`; IPv6 addresses are in brackets.
fn destination(text: &str) -> Option<Destination> {
    let (host, port) = text.rsplit_once(':')?;
    let port = match port {
        "*" => None,
        port => Some(port.parse().ok().filter(|port| *port != 0)?),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let (address, bits) = match bracketed.unwrap_or(host).split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (bracketed.unwrap_or(host), None),
    };
    let host = match (address.parse::<IpAddr>(), bits) {
        (Ok(address), _) if address.is_ipv6() != bracketed.is_some() => return None,
        (Ok(address), bits) => {
            let all = if address.is_ipv4() { 32 } else { 128 };
            Host::Addresses(address, bits.unwrap_or(all).le(&all).then(|| bits.unwrap_or(all))?)
        }
        (Err(_), None) if bracketed.is_none() && is_name(address) => {
            Host::Name(address.strip_suffix('.').unwrap_or(address).to_ascii_lowercase())
        }
        _ => return None,
    };
    Some(Destination { host, port })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        // An address that is none.
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn preopens(options: &mut WasmOptions, value: &str) -> Result<(), String> {
    options.preopens = Preopens::Listed;
    match value {
        "rootfs" => options.settings.preopens = Settings::default().preopens,
        "none" => options.settings.preopens.clear(),
        "mounts" => options.preopens = Preopens::Mounts,
        _ => {
            let list: Option<Vec<Preopen>> = parts(value).map(preopen).collect();
            options.settings.preopens = list.filter(|list| !list.is_empty()).ok_or(
                "rootfs, mounts, none or a list of absolute paths, each with ::NAME and :ro behind it if need be",
            )?;
        }
    }
    Ok(())
}

/// `PATH`, or `PATH::NAME` as the wasmtime command has it for another name in the guest; `:ro` may follow.
fn preopen(text: &str) -> Option<Preopen> {
    let (folder, read_only) = match text.strip_suffix(":ro") {
        Some(folder) => (folder, true),
        None => (text, false),
    };
    let (path, name) = folder.split_once("::").unwrap_or((folder, folder));
    let absolute = path.starts_with('/') && name.starts_with('/');
    absolute.then(|| Preopen { path: path.to_owned(), name: name.to_owned(), read_only })
}

/// What guests may take of a container's memory. The rest is for the runner itself, the code that it maps, and the kernel's
/// page tables for all of it, which count as well (8 bytes for each page of 4096).
fn share(limit: u64) -> u64 {
    const RUNNER: u64 = 4 << 20;
    (limit - limit / 64).saturating_sub(RUNNER).max(limit / 2)
}

/// The folders that are mounted into the container: those of the spec but what is the kernel's and single files.
fn mounts(bundle: &Bundle) -> Vec<Preopen> {
    const KERNEL: [&str; 7] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "devtmpfs"];
    let mounts = bundle.spec().mounts().as_deref().unwrap_or_default();
    let is_folder = |mount: &&oci_spec::runtime::Mount| {
        let kind = mount.typ().as_deref().unwrap_or_default();
        let is_file = mount.source().as_ref().is_some_and(|source| bundle.path().join(source).is_file());
        let destination = mount.destination();
        !(KERNEL.contains(&kind) || destination.starts_with("/dev") || kind != "tmpfs" && is_file)
    };
    // The kernel's or the guest's own say on writing stays.
    let preopen = |path: String| Preopen { name: path.clone(), path, read_only: false };
    mounts.iter().filter(is_folder).map(|mount| preopen(mount.destination().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<WasmOptions> {
        let mut options = WasmOptions::default();
        options.set(name, value).map(|()| options)
    }

    fn refused(name: &str, value: &str) -> String {
        let error = set(name, value).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::InvalidArgument, "{error}");
        error.to_string()
    }

    #[test]
    fn networks() {
        let of = |value| set("WasmNetwork", value).unwrap().settings.network;
        assert_eq!((of("none"), of("pod")), (Network::None, Network::Pod));
        let ip = |text: &str, bits| Host::Addresses(text.parse().unwrap(), bits);
        let expected = [
            (Host::Name("api.example.com".into()), Some(443)),
            (ip("10.0.0.0", 8), None),
            (ip("192.0.2.7", 32), Some(80)),
            (ip("fd00::", 8), Some(1)),
            (ip("::1", 128), None),
        ];
        let list = expected.map(|(host, port)| Destination { host, port }).to_vec();
        assert_eq!(of("API.example.com.:443, 10.0.0.0/8:*,192.0.2.7:80 [fd00::/8]:1,[::1]:*"), Network::Only(list));
        for value in
            ["", ",", "all", "a", "a:0", "a:65536", "::1:80", "10.0.0.0/33:1", "a/8:1", "[a]:1", "1.2.3:4", ":80"]
        {
            assert!(refused("WasmNetwork", value).contains("HOST:PORT"), "{value}");
        }
    }

    #[test]
    fn folders() {
        let of = |value| set("WasmPreopens", value).unwrap().settings.preopens;
        let preopen = |path: &str, read_only| Preopen { path: path.into(), name: path.into(), read_only };
        assert_eq!(of("rootfs"), [preopen("/", false)]);
        assert_eq!(of("none"), []);
        assert_eq!(of("/data,/etc:ro"), [preopen("/data", false), preopen("/etc", true)]);
        let root = Preopen { path: "/data".into(), name: "/".into(), read_only: true };
        assert_eq!(of("/data::/:ro"), [root]);
        for value in ["", "data", "/a,b", "Rootfs", "/a::b"] {
            assert!(refused("WasmPreopens", value).contains("absolute paths"), "{value}");
        }
    }

    #[test]
    fn memory_is_left_for_the_runner() {
        const MB: u64 = 1 << 20;
        assert_eq!(share(64 * MB), 59 * MB);
        assert_eq!(share(4 * MB), 2 * MB);
    }

    #[test]
    fn values() {
        assert_eq!(set("WasmCoredump", "/cores").unwrap().settings.coredump.as_deref(), Some("/cores"));
        assert!(refused("WasmCoredump", "cores").contains("absolute"));
        assert_eq!(set("WasmHttpAddress", "[::]:80").unwrap().settings.http.address, "[::]:80".parse().ok());
        assert!(refused("WasmHttpAddress", "80").contains("ADDRESS:PORT"));
        assert_eq!(set("WasmHttpDrain", "3600").unwrap().settings.http.drain, Some(3600));
        assert!(refused("WasmHttpDrain", "3601").contains("1 to 3600") && !refused("WasmHttpDrain", "0").is_empty());
        assert_eq!(set("WasmHttpRequests", "7").unwrap().settings.http.requests, Some(7));
        assert!(set("WasmMetricsAddress", "127.0.0.1:9100").unwrap().settings.metrics.is_some());
        assert!(set("WasmPerfMap", "true").unwrap().settings.perf_map);
        assert_eq!(set("WasmCacheSize", "2Gi").unwrap().cache_size, Some(2 << 30));
        assert!(refused("WasmCacheSize", "2GB").contains("512Mi"));
    }

    #[test]
    fn the_documentation_names_all() {
        let page = include_str!("../../../docs/wasm.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("| `Wasm"))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        assert_eq!(rows.len(), KEYS.len());
        for key in &KEYS {
            let row = rows.iter().find(|row| row[1] == key.option);
            assert_eq!(row.map(|row| row[2]), Some(key.annotation.unwrap_or_default()), "{}", key.option);
        }
        let line = page.lines().find(|line| line.contains("`WasmProposals` turns on others"));
        let quoted: Vec<&str> = line.unwrap().split('`').skip(3).step_by(2).collect();
        assert_eq!(quoted, PROPOSALS);
    }

    #[test]
    fn switches() {
        assert!(!set("WasmWasi03", "false").unwrap().wasi03);
        assert!(refused("WasmWasi03", "off").contains("true or false"));
        let proposals =
            set("WasmProposals", "wide-arithmetic custom-page-sizes,wide-arithmetic").unwrap().settings.proposals;
        assert_eq!(proposals, ["custom-page-sizes", "wide-arithmetic"]);
        let text = refused("WasmProposals", "wide-arithmetic,warp");
        assert!(text.contains("\"warp\"") && text.contains("custom-page-sizes"), "{text}");
        assert!(refused("WasmNoise", "1").contains("WasmNoise"));
    }
}
