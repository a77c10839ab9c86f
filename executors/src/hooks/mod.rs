//! Hooks: programs that the spec names to be run at turns of a container's life.
//!
//! ```text
//! hook             namespaces                    status    when
//! prestart         the shim's                    creating  environment made, before pivot_root: Step::AwaitHooks
//! createRuntime    the shim's                    creating  after them
//! createContainer  the container's, host's root  creating  after them; then init goes on
//! startContainer   the container's               created   Start was called, init still waits
//! poststart        the shim's                    running   init has executed its program, before Start returns
//! poststop         the shim's                    stopped   the container is deleted, before Delete returns
//! ```
//! A hook that fails ends the container, whose poststop hooks are then run; a poststop hook that fails is told and no more.
//!
//! Source: OCI runtime spec 1.3, config.md "POSIX-platform Hooks", runtime.md "State" and "Lifecycle".

mod run;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{ContainerState, Hook, Hooks as Spec, State};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use self::run::{Place, Prepared};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{Error, OrKind, Result, bail};
use crate::features::OCI_VERSIONS;
use crate::native::environment::last_of_each;
use crate::native::hook::{before_pivot, of_container, of_runtime};
use crate::native::join::Joining;
use crate::process::{Process, Starter};
use crate::{Kind, sys};

/// Marks the bundle of a container whose poststop hooks are to be run, for `delete` to run them after a shim that died.
const POSTSTOP: &str = "trusted.hybrid.poststop";

/// The turns of a container's life, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Turn {
    pub const ALL: [Turn; 6] = [
        Turn::Prestart,
        Turn::CreateRuntime,
        Turn::CreateContainer,
        Turn::StartContainer,
        Turn::Poststart,
        Turn::Poststop,
    ];

    /// Its name in the spec.
    pub fn name(self) -> &'static str {
        match self {
            Turn::Prestart => "prestart",
            Turn::CreateRuntime => "createRuntime",
            Turn::CreateContainer => "createContainer",
            Turn::StartContainer => "startContainer",
            Turn::Poststart => "poststart",
            Turn::Poststop => "poststop",
        }
    }

    #[allow(deprecated, reason = "prestart is deprecated by the spec, and Docker Engine's only hook")]
    fn hooks(self, spec: &Spec) -> &[Hook] {
        let hooks = match self {
            Turn::Prestart => spec.prestart(),
            Turn::CreateRuntime => spec.create_runtime(),
            Turn::CreateContainer => spec.create_container(),
            Turn::StartContainer => spec.start_container(),
            Turn::Poststart => spec.poststart(),
            Turn::Poststop => spec.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }

    /// What the state says of a container at this turn.
    fn status(self) -> ContainerState {
        match self {
            Turn::Prestart | Turn::CreateRuntime | Turn::CreateContainer => ContainerState::Creating,
            Turn::StartContainer => ContainerState::Created,
            Turn::Poststart => ContainerState::Running,
            Turn::Poststop => ContainerState::Stopped,
        }
    }
}

/// Checks what can be judged without looking at the host.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    for turn in Turn::ALL {
        for (number, hook) in turn.hooks(spec).iter().enumerate() {
            let field = |field: &str| format!("hooks.{}[{number}].{field}", turn.name());
            let path = hook.path();
            if !path.is_absolute() {
                bail!(InvalidArgument, "{}: {path:?} is not an absolute path", field("path"));
            }
            if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
                bail!(InvalidArgument, "{}: {timeout} is not greater than zero", field("timeout"));
            }
            let has_null = |string: &str| string.contains('\0');
            for (name, strings) in [("args", hook.args()), ("env", hook.env())] {
                if let Some(string) = strings.iter().flatten().find(|string| has_null(string)) {
                    bail!(InvalidArgument, "{}: {string:?} has a null byte in it", field(name));
                }
            }
            if has_null(&path.to_string_lossy()) {
                bail!(InvalidArgument, "{}: {path:?} has a null byte in it", field("path"));
            }
        }
    }
    Ok(())
}

/// A container's hooks, and what of its bundle they get to know.
pub(crate) struct Hooks {
    spec: Spec,
    id: String,
    bundle: PathBuf,
    rootfs: PathBuf,
    annotations: HashMap<String, String>,
    /// The container's own environment, for startContainer hooks without one.
    environment: Vec<String>,
}

/// A container's first process, and what others need to be beside it.
pub(crate) struct Beside<'a> {
    pub pid: u32,
    pub pidfd: BorrowedFd<'a>,
    pub joining: &'a Joining,
    pub cgroup: &'a Cgroup,
}

impl Hooks {
    /// Those of the bundle's spec; `None` if there are none.
    pub fn of(bundle: &Bundle) -> Option<Arc<Hooks>> {
        let spec = bundle.spec().hooks().as_ref()?;
        if Turn::ALL.iter().all(|turn| turn.hooks(spec).is_empty()) {
            return None;
        }
        Some(Arc::new(Hooks {
            spec: spec.clone(),
            id: bundle.id().to_owned(),
            bundle: bundle.path().to_owned(),
            rootfs: bundle.root(),
            annotations: bundle.spec().annotations().clone().unwrap_or_default(),
            environment: match Turn::StartContainer.hooks(spec) {
                [] => Vec::new(),
                _ => last_of_each(bundle.process().env().as_deref().unwrap_or_default()),
            },
        }))
    }

    /// Whether a bundle has hooks that see how its container is made, or (poststop) whether it was.
    pub fn see_create(bundle: &Bundle) -> bool {
        let turns = [Turn::Prestart, Turn::CreateRuntime, Turn::CreateContainer, Turn::Poststop];
        bundle.spec().hooks().as_ref().is_some_and(|spec| turns.iter().any(|turn| !turn.hooks(spec).is_empty()))
    }

    /// Runs the hooks of the create operation, while init waits before its pivot_root.
    pub fn create(&self, init: &Beside<'_>) -> Result<()> {
        self.in_runtime(Turn::Prestart, init.pid)?;
        self.in_runtime(Turn::CreateRuntime, init.pid)?;
        for (name, hook) in self.named(Turn::CreateContainer) {
            let state = self.state(Turn::CreateContainer, Some(pid_in_container(init.pid)?))?;
            let rootfs = self.rootfs_before_pivot(init.pid)?;
            let compile = |streams| before_pivot(hook, init.joining, init.pidfd, init.cgroup, rootfs, streams);
            Prepared::new(name, hook, &state, place(init)?, compile)?.run()?;
        }
        Ok(())
    }

    /// Lets the hooks of the start operation be run around the start of a created container.
    pub fn surround_start(self: &Arc<Self>, init: &Process, beside: &Beside<'_>) -> Result<()> {
        let turns = [Turn::StartContainer, Turn::Poststart];
        if turns.iter().all(|turn| turn.hooks(&self.spec).is_empty()) {
            return Ok(());
        }
        let mut before = Vec::new();
        for (name, hook) in self.named(Turn::StartContainer) {
            let state = self.state(Turn::StartContainer, Some(pid_in_container(beside.pid)?))?;
            let compile =
                |streams| of_container(hook, &self.environment, beside.joining, beside.pidfd, beside.cgroup, streams);
            before.push(Prepared::new(name, hook, &state, place(beside)?, compile)?);
        }
        let pidfd = duplicate(beside.pidfd)?;
        let (hooks, pid) = (Arc::clone(self), beside.pid);
        init.wrap_starter(|inner| Box::new(Start { hooks, before, inner, pid, pidfd }));
        Ok(())
    }

    /// Whether the poststop hooks are still to be run, by whom it may be.
    pub fn are_due(&self) -> bool {
        rustix::fs::getxattr(&self.bundle, POSTSTOP, &mut [0u8; 1][..]).is_ok()
    }

    /// Runs the poststop hooks, all of them, and returns what failed.
    pub fn poststop(&self) -> Vec<Error> {
        let _ = rustix::fs::removexattr(&self.bundle, POSTSTOP);
        self.run_in_runtime(Turn::Poststop, None).filter_map(Result::err).collect()
    }

    /// Runs the hooks of a turn in the shim's own namespaces, until one fails.
    fn in_runtime(&self, turn: Turn, pid: u32) -> Result<()> {
        self.run_in_runtime(turn, Some(pid)).collect()
    }

    /// Runs the next hook whenever it is asked for an outcome.
    fn run_in_runtime(&self, turn: Turn, pid: Option<u32>) -> impl Iterator<Item = Result<()>> {
        self.named(turn).map(move |(name, hook)| {
            let compile = |streams| of_runtime(hook, &self.bundle, streams);
            Prepared::new(name, hook, &self.state(turn, pid)?, Place::default(), compile)?.run()
        })
    }

    /// The rootfs as init has mounted it where its folder is on the host: not by path, for a hook in a user namespace may
    /// not go all the way.
    fn rootfs_before_pivot(&self, init: u32) -> Result<OwnedFd> {
        let open = |at, path: &Path, resolve| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat2(at, path, flags, Mode::empty(), resolve)
                .or_kind(Kind::Internal, || format!("open {} of init", path.display()))
        };
        let root = open(CWD, Path::new(&format!("/proc/{init}/root")), ResolveFlags::empty())?;
        open(root.as_fd(), &self.rootfs, ResolveFlags::IN_ROOT)
    }

    /// The hooks of a turn in their order, each with its name in the spec.
    fn named(&self, turn: Turn) -> impl Iterator<Item = (String, &Hook)> {
        let hooks = turn.hooks(&self.spec).iter().enumerate();
        hooks.map(move |(number, hook)| (format!("hooks.{}[{number}]", turn.name()), hook))
    }

    /// The container's state in JSON. `pid` is as the hook sees it.
    fn state(&self, turn: Turn, pid: Option<u32>) -> Result<Vec<u8>> {
        let mut state = State::default();
        let [_, version] = OCI_VERSIONS;
        state
            .set_version(version.to_owned())
            .set_id(self.id.clone())
            .set_status(turn.status())
            .set_pid(pid.map(|pid| pid as i32))
            .set_bundle(self.bundle.clone())
            .set_annotations((!self.annotations.is_empty()).then(|| self.annotations.clone()));
        serde_json::to_vec(&state).or_kind(Kind::Internal, || "encode the container's state")
    }
}

/// The start of a container that has hooks of that operation.
struct Start {
    hooks: Arc<Hooks>,
    /// The startContainer hooks.
    before: Vec<Prepared>,
    inner: Box<dyn Starter>,
    /// Of init.
    pid: u32,
    pidfd: OwnedFd,
}

impl Starter for Start {
    fn start(self: Box<Self>) -> Result<()> {
        let Start { hooks, before, inner, pid, pidfd } = *self;
        let start = || {
            before.into_iter().try_for_each(Prepared::run)?;
            inner.start()?;
            hooks.in_runtime(Turn::Poststart, pid)
        };
        start().inspect_err(|_| {
            // It may have ended by itself.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        })
    }
}

/// Runs the poststop hooks when dropped, once [`Poststop::due`] was called: when the environment was there that they may
/// have to clean up after. To be dropped after everything else of the container.
pub(crate) struct Poststop {
    hooks: Option<Arc<Hooks>>,
    due: bool,
}

impl Poststop {
    pub fn new(hooks: Option<Arc<Hooks>>) -> Poststop {
        Poststop { hooks, due: false }
    }

    pub fn due(&mut self) {
        self.due = true;
        if let Some(hooks) = self.hooks.as_ref().filter(|hooks| !Turn::Poststop.hooks(&hooks.spec).is_empty()) {
            // Where the bundle's file system has no such attributes, a cgroup that is still there says the same.
            let _ = rustix::fs::setxattr(&hooks.bundle, POSTSTOP, b"1", rustix::fs::XattrFlags::empty());
        }
    }
}

impl Drop for Poststop {
    fn drop(&mut self) {
        if let Some(hooks) = self.hooks.take().filter(|_| self.due) {
            hooks.poststop().iter().for_each(|error| log::warn!("container {}: {error}", hooks.id));
        }
    }
}

/// Where a process is born that is to be beside init.
fn place(init: &Beside<'_>) -> Result<Place> {
    let pid_namespace = init.joining.pid_namespace().then(|| duplicate(init.pidfd)).transpose()?;
    Ok(Place { pid_namespace, cgroups: init.cgroup.births_beside(init.pid)? })
}

fn duplicate(pidfd: BorrowedFd<'_>) -> Result<OwnedFd> {
    pidfd.try_clone_to_owned().or_kind(Kind::Unavailable, || "duplicate the pidfd of init")
}

/// A process's pid in its own pid namespace (proc_pid_status(5), NSpid).
fn pid_in_container(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).or_kind(Kind::Internal, || format!("read {path}"))?;
    match innermost_pid(&status) {
        Some(pid) => Ok(pid),
        None => bail!(Internal, "{path} has no NSpid"),
    }
}

fn innermost_pid(status: &str) -> Option<u32> {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> Spec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_wrong_is_named() {
        for turn in Turn::ALL {
            for (field, value) in [
                ("path", json!("bin/true")),
                ("path", json!("")),
                ("path", json!("/a\0b")),
                ("timeout", json!(0)),
                ("timeout", json!(-1)),
                ("args", json!(["a", "b\0c"])),
                ("env", json!(["A=b\0c"])),
            ] {
                let mut bad = json!({"path": "/bin/true"});
                bad[field] = value.clone();
                let error = check(&spec(json!({turn.name(): [{"path": "/bin/true"}, bad]}))).unwrap_err();
                assert_eq!(error.kind(), Kind::InvalidArgument);
                let start = format!("hooks.{}[1].{field}: ", turn.name());
                assert!(error.to_string().starts_with(&start), "{field} = {value}: {error}");
            }
            let good = json!({"path": "/bin/true", "args": ["other"], "env": ["A=b", "C"], "timeout": 1});
            check(&spec(json!({turn.name(): [good]}))).unwrap();
        }
    }

    #[test]
    fn the_state_is_what_the_spec_says() {
        let mut hooks = Hooks {
            spec: Spec::default(),
            id: "box".to_owned(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            annotations: HashMap::from([("a.b".to_owned(), "c".to_owned())]),
            environment: Vec::new(),
        };
        let state =
            |hooks: &Hooks, turn, pid| -> Value { serde_json::from_slice(&hooks.state(turn, pid).unwrap()).unwrap() };
        let expected = json!({
            "ociVersion": "1.3.0",
            "id": "box",
            "status": "creating",
            "pid": 42,
            "bundle": "/b",
            "annotations": {"a.b": "c"},
        });
        assert_eq!(state(&hooks, Turn::CreateRuntime, Some(42)), expected);
        hooks.annotations.clear();
        // Nothing runs any more.
        let expected = json!({"ociVersion": "1.3.0", "id": "box", "status": "stopped", "bundle": "/b"});
        assert_eq!(state(&hooks, Turn::Poststop, None), expected);
        for (turn, status) in [
            (Turn::Prestart, "creating"),
            (Turn::CreateContainer, "creating"),
            (Turn::StartContainer, "created"),
            (Turn::Poststart, "running"),
        ] {
            assert_eq!(state(&hooks, turn, Some(1))["status"], status);
        }
    }

    #[test]
    fn the_container_s_own_pid_is_the_innermost() {
        assert_eq!(innermost_pid("Name:\ta\nNSpid:\t120\t7\t1\nNSpgid:\t9\n"), Some(1));
        assert_eq!(innermost_pid("NSpid:\t120\n"), Some(120));
        assert_eq!(innermost_pid("Name:\ta\n"), None);
        let own = std::process::id();
        assert_eq!(pid_in_container(own).unwrap(), own);
    }
}
