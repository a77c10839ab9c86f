//! The values of cgroup files → the properties of a unit that have systemd write the same: pure.
//!
//! systemd writes what it knows of a unit again whenever it likes, such as after `systemctl daemon-reload`. So what it could
//! write is told to it; files that it has no property for it leaves alone.
//!
//! Source: systemd.resource-control(5); the units of D-Bus properties are in org.freedesktop.systemd1(5).

use zbus::zvariant::Value;

use super::super::devices::Rule;
use super::super::devices::v1::Devices;
use super::super::limits::Setting;

/// A property's name and its value.
pub(super) type Property = (&'static str, Value<'static>);

/// systemd's "infinity".
const INFINITY: u64 = u64::MAX;

/// The kernel's, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// No host has as many CPUs or memory nodes.
const MOST_CPUS: usize = 8192;

/// What the properties depend on besides.
pub(super) struct Host {
    pub v2: bool,
    /// systemd's, if [`depend_on_version`].
    pub version: u32,
    /// v1's period of CPU time in microseconds, as it is at present.
    pub period: Option<u64>,
}

/// The first version of systemd with CPUWeight=idle.
const IDLE_SINCE: u32 = 252;

/// The first version of systemd with OOMPolicy for scopes.
const OOM_POLICY_SINCE: u32 = 253;

/// Whether [`Host::version`] counts.
pub(super) fn depend_on_version(settings: &[Setting]) -> bool {
    settings.iter().any(|setting| matches!(setting.file.as_str(), "cpu.idle" | "memory.oom.group"))
}

/// The properties of a unit that is started.
pub(super) fn of_new(settings: &[Setting], host: &Host) -> Vec<Property> {
    let mut properties = of_changed(settings, host);
    // Can't be changed later.
    let group = last(settings, "memory.oom.group").filter(|_| host.version >= OOM_POLICY_SINCE);
    let policy = match group.map(str::trim) {
        Some("0") => Some("continue"),
        Some("1") => Some("kill"),
        _ => None,
    };
    properties.extend(policy.map(|policy| ("OOMPolicy", Value::from(policy))));
    properties
}

/// The properties of a unit that is changed. What can't be read as the kernel would read it has none.
pub(super) fn of_changed(settings: &[Setting], host: &Host) -> Vec<Property> {
    let mut properties: Vec<Property> = Vec::new();
    let mut add = |name, value: Option<Value<'static>>| properties.extend(value.map(|value| (name, value)));
    let number = |file| last(settings, file).and_then(amount).map(Value::from);
    let bits = |file| last(settings, file).and_then(mask).map(Value::from);
    if host.v2 {
        for (file, name) in [
            ("memory.min", "MemoryMin"),
            ("memory.low", "MemoryLow"),
            ("memory.high", "MemoryHigh"),
            ("memory.max", "MemoryMax"),
            ("memory.swap.max", "MemorySwapMax"),
        ] {
            add(name, number(file));
        }
        add("AllowedCPUs", bits("cpuset.cpus"));
        add("AllowedMemoryNodes", bits("cpuset.mems"));
        add("CPUWeight", weight(settings, host).map(Value::from));
    } else {
        add("MemoryLimit", number("memory.limit_in_bytes"));
        add("CPUShares", number("cpu.shares"));
        add("BlockIOWeight", number("blkio.bfq.weight"));
    }
    // systemd takes no zero.
    add("TasksMax", last(settings, "pids.max").and_then(amount).map(|limit| Value::from(limit.max(1))));
    if let Some((quota, period)) = quota(settings, host) {
        add("CPUQuotaPeriodUSec", Some(Value::from(period)));
        add("CPUQuotaPerSecUSec", Some(Value::from(quota)));
    }
    properties
}

/// v1's device rules, which systemd resets; v2's are a program of our own that it leaves alone. What systemd has no words
/// for it denies.
pub(super) fn of_devices(rules: &[Rule]) -> Vec<Property> {
    let devices = Devices::from_rules(rules);
    let nothing: Vec<(String, String)> = Vec::new();
    let clear = ("DeviceAllow", Value::from(nothing));
    if devices.allows_all() {
        return vec![clear, ("DevicePolicy", Value::from("auto"))];
    }
    let allowed: Vec<(String, String)> = devices.allowed().into_iter().filter_map(allow).collect();
    vec![clear, ("DevicePolicy", Value::from("strict")), ("DeviceAllow", Value::from(allowed))]
}

/// A rule as DeviceAllow has it.
fn allow(rule: Rule) -> Option<(String, String)> {
    let kind = if rule.kind == 'b' { "block" } else { "char" };
    let device = match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        (None, None) => format!("{kind}-*"),
        (None, Some(_)) => return None,
    };
    Some((device, rule.access))
}

/// The value that counts: of several the last.
fn last<'a>(settings: &'a [Setting], file: &str) -> Option<&'a str> {
    settings.iter().rev().find(|setting| setting.file == file).map(|setting| setting.value.as_str())
}

/// A number as the kernel reads one of bytes or processes: `max` and -1 are infinity, k, M, G and T what they are elsewhere.
fn amount(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" || text == "-1" {
        return Some(INFINITY);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// v2's weight; 0 is idle. systemd writes cpu.weight and cpu.idle from the one property.
fn weight(settings: &[Setting], host: &Host) -> Option<u64> {
    const DEFAULT: u64 = 100;
    let weight = last(settings, "cpu.weight").and_then(amount);
    match last(settings, "cpu.idle").map(str::trim) {
        Some("1") if host.version >= IDLE_SINCE => Some(0),
        // The kernel sets the weight of what is no longer idle to its default.
        Some("0") => weight.or(Some(DEFAULT)),
        _ => weight,
    }
}

/// Microseconds of CPU time per second and the period in microseconds.
fn quota(settings: &[Setting], host: &Host) -> Option<(u64, u64)> {
    let (quota, period) = if host.v2 {
        let mut words = last(settings, "cpu.max")?.split_ascii_whitespace();
        (words.next()?, words.next().map_or(Some(DEFAULT_PERIOD), |period| period.parse().ok())?)
    } else {
        let period = last(settings, "cpu.cfs_period_us").and_then(|period| period.trim().parse().ok());
        (last(settings, "cpu.cfs_quota_us")?.trim(), period.or(host.period).unwrap_or(DEFAULT_PERIOD))
    };
    let quota = amount(quota)?;
    if quota == INFINITY {
        return Some((INFINITY, period));
    }
    // systemd keeps it in whole percents: it may be written again with up to one more.
    const PERCENT: u64 = 10_000;
    let per_second = quota.checked_mul(1_000_000)?.checked_div(period)?;
    Some((per_second.div_ceil(PERCENT).checked_mul(PERCENT)?, period))
}

/// A list such as `0-2,7` as bits: that of number n is bit n % 8 of byte n / 8. An empty list is no restriction.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.trim().split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MOST_CPUS {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0u8);
        for number in first..=last {
            if let Some(byte) = bits.get_mut(number / 8) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::limits::{Missing, settings};
    use serde_json::{Value as Json, json};

    fn host(v2: bool) -> Host {
        Host { v2, version: 257, period: None }
    }

    fn new(resources: Json, host: &Host) -> Vec<Property> {
        of_new(&settings(Some(&serde_json::from_value(resources).unwrap()), host.v2).unwrap(), host)
    }

    fn value<'a>(properties: &'a [Property], name: &str) -> Option<&'a Value<'static>> {
        properties.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    #[test]
    fn limits_on_v2() {
        let resources = json!({
            "memory": {"limit": 1048576, "swap": 2097152, "reservation": 4096},
            "cpu": {"shares": 1024, "quota": 20000, "period": 100000, "cpus": "0-1,9", "mems": "0"},
            "pids": {"limit": 10},
            "unified": {"memory.high": "1G", "memory.min": "max", "memory.oom.group": "1"},
        });
        let properties = new(resources, &host(true));
        for (name, wanted) in [
            ("MemoryMax", Value::from(1048576u64)),
            ("MemorySwapMax", Value::from(1048576u64)),
            ("MemoryLow", Value::from(4096u64)),
            ("MemoryHigh", Value::from(1u64 << 30)),
            ("MemoryMin", Value::from(u64::MAX)),
            ("CPUWeight", Value::from(100u64)),
            ("CPUQuotaPerSecUSec", Value::from(200_000u64)),
            ("CPUQuotaPeriodUSec", Value::from(100_000u64)),
            ("AllowedCPUs", Value::from(vec![0b11u8, 0b10])),
            ("AllowedMemoryNodes", Value::from(vec![1u8])),
            ("TasksMax", Value::from(10u64)),
            ("OOMPolicy", Value::from("kill")),
        ] {
            assert_eq!(value(&properties, name), Some(&wanted), "{name}");
        }
        assert_eq!(properties.len(), 12, "{properties:?}");
    }

    #[test]
    fn limits_on_v1() {
        let resources = json!({
            "memory": {"limit": -1, "swap": 2097152},
            "cpu": {"shares": 512, "quota": 15001, "period": 50000, "cpus": "0"},
            "blockIO": {"weight": 500},
            "pids": {"limit": -1},
        });
        let properties = new(resources, &host(false));
        for (name, wanted) in [
            ("MemoryLimit", u64::MAX),
            ("CPUShares", 512),
            ("BlockIOWeight", 500),
            ("CPUQuotaPerSecUSec", 310_000),
            ("CPUQuotaPeriodUSec", 50_000),
            ("TasksMax", u64::MAX),
        ] {
            assert_eq!(value(&properties, name), Some(&Value::from(wanted)), "{name}");
        }
        assert_eq!(properties.len(), 6, "{properties:?}");
    }

    #[test]
    fn a_quota_alone_has_the_present_period() {
        let setting = Setting {
            field: "f",
            controller: None,
            file: "cpu.cfs_quota_us".to_owned(),
            value: "10000".to_owned(),
            missing: Missing::Error,
        };
        let properties = of_changed(&[setting], &Host { period: Some(20_000), ..host(false) });
        assert_eq!(value(&properties, "CPUQuotaPerSecUSec"), Some(&Value::from(500_000u64)));
    }

    #[test]
    fn what_the_version_decides() {
        let idle = json!({"cpu": {"idle": 1, "shares": 1024}, "unified": {"memory.oom.group": "0"}});
        let old = Host { version: 251, ..host(true) };
        assert_eq!(value(&new(idle.clone(), &host(true)), "CPUWeight"), Some(&Value::from(0u64)));
        assert_eq!(value(&new(idle.clone(), &host(true)), "OOMPolicy"), Some(&Value::from("continue")));
        assert_eq!(value(&new(idle.clone(), &old), "CPUWeight"), Some(&Value::from(100u64)));
        assert_eq!(value(&new(idle, &old), "OOMPolicy"), None);
        assert_eq!(value(&new(json!({"cpu": {"idle": 0}}), &old), "CPUWeight"), Some(&Value::from(100u64)));
    }

    #[test]
    fn what_has_no_property_is_left_to_the_files() {
        for (file, text) in
            [("memory.high", "1x"), ("pids.max", "many"), ("cpu.max", "1 0"), ("cpuset.cpus", "0-99999999")]
        {
            assert_eq!(new(json!({"unified": {file: text}}), &host(true)), [], "{file}");
        }
        assert_eq!(new(json!({"unified": {"io.max": "8:0 rbps=1"}}), &host(true)), []);
        assert_eq!(mask(""), Some(vec![]));
        assert_eq!(mask("2-1"), None);
    }

    #[test]
    fn device_rules_of_v1() {
        let rule =
            |allow, kind, major, minor, access: &str| Rule { allow, kind, major, minor, access: access.to_owned() };
        let denied = rule(false, 'a', None, None, "rwm");
        let rules = [
            denied.clone(),
            rule(true, 'c', Some(1), Some(3), "rw"),
            rule(true, 'b', Some(8), None, "r"),
            rule(true, 'c', None, None, "m"),
            rule(true, 'c', None, Some(7), "r"),
        ];
        let entry = |device: &str, access: &str| (device.to_owned(), access.to_owned());
        let wanted = vec![entry("block-8", "r"), entry("char-*", "m"), entry("/dev/char/1:3", "rw")];
        let properties = of_devices(&rules);
        let strict = ("DevicePolicy", Value::from("strict"));
        assert_eq!(properties.get(1..), Some(&[strict.clone(), ("DeviceAllow", Value::from(wanted))][..]));
        let all = [denied, rule(true, 'a', None, None, "rwm")];
        assert_eq!(of_devices(&all).get(1..), Some(&[("DevicePolicy", Value::from("auto"))][..]));
        let but_one = [&all[..], &[rule(false, 'c', Some(1), Some(3), "rwm")]].concat();
        let nothing: Vec<(String, String)> = Vec::new();
        assert_eq!(of_devices(&but_one).get(1..), Some(&[strict, ("DeviceAllow", Value::from(nothing))][..]));
    }
}
