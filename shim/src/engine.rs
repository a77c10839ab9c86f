//! The seam between the life cycle and the executors: what tasks need of a bundle, a container and a process.
//!
//! The traits mirror `executors`' own types one to one; they exist so that the life cycle can be tested with fakes.

use executors::{Choice, CreateOptions, Exit, Result, RootfsMount, Stdio};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

/// Opens bundles.
pub trait Engine: Send + Sync + 'static {
    fn open(&self, id: &str, path: &Path) -> Result<Box<dyn Bundle>>;
}

/// See [`executors::Bundle`].
pub trait Bundle {
    fn terminal(&self) -> bool;
    fn create(
        self: Box<Self>,
        rootfs: &[RootfsMount],
        stdio: Stdio,
        options: &CreateOptions,
    ) -> Result<Box<dyn Container>>;
}

/// See [`executors::Container`].
pub trait Container: Send + Sync {
    fn choice(&self) -> &Choice;
    fn init(&self) -> Arc<dyn Process>;
    fn owns_pid_namespace(&self) -> bool;
    fn pids(&self) -> Result<Vec<u32>>;
    fn signal_all(&self, signal: i32) -> Result<()>;
    fn delete(self: Box<Self>) -> Result<()>;
}

/// See [`executors::Process`].
pub trait Process: Send + Sync {
    fn pid(&self) -> u32;
    fn start(&self) -> Result<()>;
    fn signal(&self, signal: i32) -> Result<()>;
    fn exit_fd(&self) -> BorrowedFd<'_>;
    fn reap(&self) -> Result<Option<Exit>>;
}

/// The executors of this machine.
pub struct Host;

impl Engine for Host {
    fn open(&self, id: &str, path: &Path) -> Result<Box<dyn Bundle>> {
        Ok(Box::new(executors::Bundle::open(id, path)?))
    }
}

impl Bundle for executors::Bundle {
    fn terminal(&self) -> bool {
        executors::Bundle::terminal(self)
    }

    fn create(
        self: Box<Self>,
        rootfs: &[RootfsMount],
        stdio: Stdio,
        options: &CreateOptions,
    ) -> Result<Box<dyn Container>> {
        Ok(Box::new(executors::create(*self, rootfs, stdio, options)?))
    }
}

impl Container for executors::Container {
    fn choice(&self) -> &Choice {
        executors::Container::choice(self)
    }

    fn init(&self) -> Arc<dyn Process> {
        executors::Container::init(self).clone()
    }

    fn owns_pid_namespace(&self) -> bool {
        executors::Container::owns_pid_namespace(self)
    }

    fn pids(&self) -> Result<Vec<u32>> {
        executors::Container::pids(self)
    }

    fn signal_all(&self, signal: i32) -> Result<()> {
        executors::Container::signal_all(self, signal)
    }

    fn delete(self: Box<Self>) -> Result<()> {
        executors::Container::delete(*self)
    }
}

impl Process for executors::Process {
    fn pid(&self) -> u32 {
        executors::Process::pid(self)
    }

    fn start(&self) -> Result<()> {
        executors::Process::start(self)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        executors::Process::signal(self, signal)
    }

    fn exit_fd(&self) -> BorrowedFd<'_> {
        executors::Process::exit_fd(self)
    }

    fn reap(&self) -> Result<Option<Exit>> {
        executors::Process::reap(self)
    }
}
