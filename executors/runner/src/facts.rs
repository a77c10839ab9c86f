//! What is known of a module after it was compiled.

use serde::{Deserialize, Serialize};

/// The kinds of program that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum World {
    /// A core module that imports WASI 0.1.
    Core,
    /// A component that imports WASI 0.2 or 0.3.
    Component,
}

/// The usual entry points, in the order in which they are looked for: a service often exports a `run` that does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Entry {
    /// `_start` of a core module.
    Start,
    /// `wasi:http/handler@0.3`.
    Handler03,
    /// `wasi:http/incoming-handler@0.2`.
    Handler02,
    /// `wasi:cli/run@0.3`.
    Run03,
    /// `wasi:cli/run@0.2`.
    Run02,
}

impl Entry {
    /// The entry point that an export of a component is.
    pub fn of_export(name: &str) -> Option<Entry> {
        [Entry::Handler03, Entry::Handler02, Entry::Run03, Entry::Run02].into_iter().find(|entry| {
            name.strip_prefix(entry.name())
                .and_then(|rest| rest.strip_prefix('.'))
                // Not a release candidate, whose interfaces are others.
                .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    /// The name of the export, without its patch version.
    pub fn name(self) -> &'static str {
        match self {
            Entry::Start => "_start",
            Entry::Handler03 => "wasi:http/handler@0.3",
            Entry::Handler02 => "wasi:http/incoming-handler@0.2",
            Entry::Run03 => "wasi:cli/run@0.3",
            Entry::Run02 => "wasi:cli/run@0.2",
        }
    }

    /// Whether it takes requests and is served.
    pub fn serves(self) -> bool {
        matches!(self, Entry::Handler03 | Entry::Handler02)
    }

    /// Whether it is of WASI 0.3.
    pub fn is_wasi03(self) -> bool {
        matches!(self, Entry::Handler03 | Entry::Run03)
    }
}

/// Which of WASI a component imports: what it doesn't is not set up for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imports {
    pub wasi02: bool,
    pub wasi03: bool,
    pub http02: bool,
    pub http03: bool,
    /// `wasi:sockets` of either version.
    pub sockets: bool,
    /// `wasi:filesystem` of either version.
    pub filesystem: bool,
    /// `wasi:config`, whose versions are its own.
    pub config: bool,
}

impl Imports {
    /// Whether it may open connections.
    pub fn needs_network(self) -> bool {
        self.sockets || self.http02 || self.http03
    }

    /// Adds the import of that name, such as `wasi:io/poll@0.2.6`.
    pub fn add(&mut self, name: &str) {
        let Some((interface, version)) = name.strip_prefix("wasi:").and_then(|name| name.split_once('@')) else {
            return;
        };
        if interface.starts_with("config/") {
            self.config = true;
            return;
        }
        let is03 = version.starts_with("0.3.");
        match (interface.split('/').next(), is03) {
            (Some("http"), true) => self.http03 = true,
            (Some("http"), false) => self.http02 = true,
            _ => {}
        }
        self.wasi03 |= is03;
        self.wasi02 |= !is03;
        self.sockets |= interface.starts_with("sockets/");
        self.filesystem |= interface.starts_with("filesystem/");
    }
}

/// What is known of a module after it was compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub world: World,
    /// Its usual entry points, the first that is looked for first.
    pub entries: Vec<Entry>,
    /// Exported functions that take and return nothing, and so can be called by `#function`.
    pub functions: Vec<String>,
    pub imports: Imports,
}

impl Facts {
    /// Whether it is a service, or can be run as one: its code then lets others have the thread from time to time.
    pub fn serves(&self) -> bool {
        self.entries.iter().any(|entry| entry.serves())
    }
}
