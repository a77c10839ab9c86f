//! What a container has used of its host's resources, as its cgroup counts it.
//!
//! The shape is that of containerd's messages `io.containerd.cgroups.v1.Metrics` and `io.containerd.cgroups.v2.Metrics`
//! (github.com/containerd/cgroups, cgroup1/stats and cgroup2/stats), field by field. A group of fields that the host does
//! not count is `None` or empty; a single field of a group that it does not count is 0.
//!
//! Source of the files: the kernel's cgroup-v1 documents and cgroup-v2.rst.

mod read;
pub mod v1;
pub mod v2;

use super::Cgroup;
use crate::error::Result;

/// What a cgroup counts, by the host's version of cgroups.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// The host has cgroup v1.
    V1(Box<v1::Metrics>),
    /// The host has cgroup v2.
    V2(Box<v2::Metrics>),
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStat {
    /// How many there are.
    pub current: u64,
    /// How many there may be. No limit is 0 on v1 and `u64::MAX` on v2, as containerd has it.
    pub limit: u64,
}

/// RDMA and InfiniBand devices, each with what is in use and what may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaStat {
    pub current: Vec<RdmaEntry>,
    pub limit: Vec<RdmaEntry>,
}

/// One such device. No limit is `u32::MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    pub device: String,
    pub hca_handles: u32,
    pub hca_objects: u32,
}

/// Defines a struct of counters, and how it is read from lines of the form `key value`. A counter that has several keys is
/// their sum.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident = $($key:literal)|+,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $name {
            pub(in crate::cgroup) fn parse(text: &str) -> Self {
                let mut counters = Self::default();
                for (key, value) in super::read::pairs(text) {
                    match key {
                        $($($key)|+ => counters.$field = counters.$field.saturating_add(value),)*
                        _ => {}
                    }
                }
                counters
            }
        }
    };
}
use counters;

impl Cgroup {
    /// What it counts now.
    ///
    /// # Errors
    /// NotFound when it is gone. What the host does not count is no error.
    pub fn stats(&self) -> Result<Stats> {
        if self.v2() { v2::read(self).map(Stats::V2) } else { v1::read(self).map(Stats::V1) }
    }
}
