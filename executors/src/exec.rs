//! Further processes in a container (`exec`).
//!
//! An exec'd process is a child of the shim like init: the launching thread enters the container's pid namespace for the
//! clone, the child is born in or moves itself to the cgroup, and joins init's other namespaces by its pidfd, all at once.
//! What its program is decides how it runs, as for init: a WebAssembly file in Wasmtime, anything else by the kernel.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use oci_spec::runtime::Process as ProcessSpec;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::bundle::{self, check_process, read_with_process};
use crate::console::Console;
use crate::container::Container;
use crate::dispatch::{self, Entrypoint, Executor};
use crate::error::{OrKind, Result, bail};
use crate::native::environment::environment;
use crate::native::launch::exec;
use crate::native::plan::Payload;
use crate::native::scheduling::{Affinity, BoundThread};
use crate::native::step::Plan;
use crate::native::user;
use crate::process::Process;
use crate::{Kind, Stdio, wasm};

/// What to execute: the spec's `process` object (config.md, "Process"), checked.
pub struct ExecSpec(ProcessSpec);

impl ExecSpec {
    /// From JSON.
    ///
    /// # Errors
    /// InvalidArgument for what is wrong, Unimplemented for what hybrid doesn't do; both with the name of the field.
    pub fn parse(json: &[u8]) -> Result<ExecSpec> {
        let process: ProcessSpec = read_with_process(json, "process", "")?;
        check_process(&process)?;
        Ok(ExecSpec(process))
    }
}

/// Where the module is that a process would be, and the function that is called of it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn detect(spec: &ExecSpec, root: BorrowedFd<'_>) -> Result<Option<(String, Option<String>)>> {
    Ok(match dispatch::pick_exec(&spec.0, root)? {
        Entrypoint::Native => None,
        Entrypoint::Wasm { path, function, .. } => Some((path, function)),
    })
}

impl fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExecSpec").field(&bundle::args(&self.0)).finish()
    }
}

impl Container {
    /// Executes a further process in the container and returns once its execve(2) has happened.
    ///
    /// # Errors
    /// FailedPrecondition when init has ended; else what could not be done, with the spec's field; nothing is left behind.
    pub fn exec(&self, spec: &ExecSpec, stdio: Stdio) -> Result<Process> {
        self.exec_with(spec, stdio, |_| ())
    }

    /// The same with a look at the plan before it is run.
    pub(crate) fn exec_with(&self, spec: &ExecSpec, stdio: Stdio, look: impl FnOnce(&mut Plan)) -> Result<Process> {
        let process = self.joining.complete(&spec.0);
        let mappings = self.joining.mappings.as_ref();
        mappings.map_or(Ok(()), |mappings| mappings.check(&process))?;
        let root = self.root()?;
        let payload = match self.entrypoint(&process, root.as_fd())? {
            Entrypoint::Native => Payload::Spec,
            Entrypoint::Wasm { module, path, function } => {
                let options = self.wasm.lock().unwrap_or_else(PoisonError::into_inner).clone();
                wasm::prepare(module, &path, function.as_deref(), &options)?.payload(bundle::args(&process))?
            }
        };
        let (stdio, console) = match stdio {
            Stdio::Streams(streams) => (user::streams(&process, mappings, streams)?, None),
            Stdio::Terminal => {
                let (console, slave) = open_terminal(root.as_fd())?;
                console.resize_to(&process)?;
                (user::terminal(&process, mappings, &slave)?, Some(console))
            }
        };
        let init = self.init.exit_fd();
        let for_guest = matches!(payload, Payload::Runner { .. });
        let environment = environment(&process, root.as_fd(), for_guest);
        drop(root);
        let mut plan = self.joining.compile(&process, &environment, init, &self.cgroup, stdio, payload)?;
        look(&mut plan);
        let _bound = Affinity::of(&process)?.initial.as_ref().map(BoundThread::to).transpose()?;
        let pid_namespace = self.joining.pid_namespace().then_some(init);
        exec(plan, pid_namespace, &self.cgroup.births_beside(self.init.pid())?, console)
    }

    /// An annotation for the native executor holds for every process of the container.
    fn entrypoint(&self, process: &ProcessSpec, root: BorrowedFd<'_>) -> Result<Entrypoint<'static>> {
        if self.choice.executor == Executor::Native && self.choice.by_annotation {
            return Ok(Entrypoint::Native);
        }
        dispatch::pick_exec(process, root)
    }

    /// The container's root folder, as init sees it.
    pub(crate) fn root(&self) -> Result<OwnedFd> {
        let path = format!("/proc/{}/root", self.init.pid());
        let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        // Had it ended before, the pid could be another process's by now.
        if self.init.reap()?.is_some() {
            bail!(FailedPrecondition, "the container's init has ended");
        }
        root.or_kind(Kind::Internal, || format!("open {path}"))
    }
}

/// A terminal in the container's devpts, or where it has none in the host's.
fn open_terminal(root: BorrowedFd<'_>) -> Result<(Console, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, c"/dev/pts", flags, Mode::empty(), resolve) {
        Ok(devpts) => Console::open(devpts.as_fd()),
        Err(rustix::io::Errno::NOENT) => Console::open_on_host(),
        Err(errno) => Err(errno).or_kind(Kind::InvalidArgument, || "process.terminal: open /dev/pts of the container"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: serde_json::Value) -> Result<ExecSpec> {
        ExecSpec::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_spec_is_checked_as_that_of_init_is() {
        let good = json!({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        parse(good.clone()).unwrap();
        for (field, value, kind) in [
            ("args", json!([]), Kind::InvalidArgument),
            ("cwd", json!("relative"), Kind::InvalidArgument),
            ("ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), Kind::InvalidArgument),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let error = parse(bad).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(field), "{error}");
        }
        assert_eq!(ExecSpec::parse(b"{").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
