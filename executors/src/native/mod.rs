//! Linux containers: a spec is compiled to a plan of steps, and a new process runs them on itself.
//!
//! ```text
//! Bundle    ─ plan (with mounts, options, user, …) ───────┐
//!                                                         ├─> Plan of Steps ─ launch ─> clone3 ─> child (with resolve) ─> execve
//! exec spec ─ join (with user) ───────────────────────────┤
//! hook ─ hook (with join, if it runs in the container) ───┘
//! ```

pub(crate) mod child;
mod devices;
pub(crate) mod environment;
#[cfg(test)]
mod failures;
pub(crate) mod filesystem;
pub(crate) mod hook;
pub(crate) mod idmap;
pub(crate) mod join;
pub(crate) mod launch;
pub(crate) mod mounts;
mod move_root;
pub(crate) mod namespaces;
pub(crate) mod net_devices;
mod netlink;
pub(crate) mod options;
pub(crate) mod plan;
pub(crate) mod resolve;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod selinux;
pub(crate) mod step;
mod terminal;
pub(crate) mod user;
pub(crate) mod user_namespace;
