//! What the shim tells the runner: which guest, and what it may do.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::facts::{Entry, Imports};

/// What the runner is told, as JSON in a sealed memfd.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunnerConfig {
    /// The module's path in the container, for messages.
    pub name: String,
    /// What is called.
    pub call: Call,
    pub imports: Imports,
    /// What [`crate::Facts::serves`] says.
    pub serves: bool,
    pub settings: Settings,
}

impl RunnerConfig {
    /// Whether the guest can use folders at all.
    pub fn needs_folders(&self) -> bool {
        matches!(self.call, Call::Entry(Entry::Start) | Call::CoreFunction(_)) || self.imports.filesystem
    }
}

/// What is called of a guest.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// A usual entry point.
    Entry(Entry),
    /// The export of that name of a core module.
    CoreFunction(String),
    /// The export of that name of a component.
    ComponentFunction(String),
}

/// How guests of a container are run; the default is what holds when nothing is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Proposals of WebAssembly beyond Wasmtime's defaults (see [`crate::PROPOSALS`]).
    pub proposals: Vec<String>,
    pub network: Network,
    /// The folders that a guest is given, in this order.
    pub preopens: Vec<Preopen>,
    pub http: Http,
    /// The most that linear memories and tables may take in all, in bytes.
    pub memory: Option<u64>,
    /// Where figures are shown.
    pub metrics: Option<SocketAddr>,
    /// The folder in the container that gets a core dump of a guest that traps.
    pub coredump: Option<String>,
    /// What `wasi:config` gives, by keys.
    pub config: BTreeMap<String, String>,
    /// Whether there is a map of the code for perf(1), as /tmp/perf-PID.map in the container.
    pub perf_map: bool,
}

/// How requests are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// Where it listens; `None` is what the environment says, or [`crate::HTTP_ADDRESS`].
    pub address: Option<SocketAddr>,
    /// How many requests an instance answers, one after the other or at once; `None` is Wasmtime's own number for the
    /// version of WASI.
    pub requests: Option<u32>,
    /// How long requests that are being answered are waited for after SIGTERM, in seconds; `None` is [`crate::HTTP_DRAIN`].
    pub drain: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        let root = Preopen { path: "/".to_owned(), name: "/".to_owned(), read_only: false };
        Settings {
            proposals: Vec::new(),
            network: Network::Pod,
            preopens: vec![root],
            http: Http::default(),
            memory: None,
            metrics: None,
            coredump: None,
            config: BTreeMap::new(),
            perf_map: false,
        }
    }
}

/// A folder that a guest is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Where it is in the container, and what the guest knows it as; absolute paths both.
    pub path: String,
    pub name: String,
    /// Whether it is read-only for the guest whatever it is for the container.
    pub read_only: bool,
}

/// What a guest may reach, in the network namespace that its container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    None,
    /// All that the namespace reaches.
    #[default]
    Pod,
    /// These, by connections and datagrams that the guest begins.
    Only(Vec<Destination>),
}

/// Where a guest may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    pub host: Host,
    /// `None` is every port.
    pub port: Option<u16>,
}

/// The host of a [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Host {
    /// The addresses whose first bits are those of this one.
    Addresses(IpAddr, u8),
    /// The addresses that the guest, or an outgoing request of its, finds under this name, in lower case.
    Name(String),
}
