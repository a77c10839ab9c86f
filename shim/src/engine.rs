//! The seam between the life cycle and the executors: what tasks need of a bundle, a container and a process.
//!
//! The traits mirror `executors`' own types one to one; they exist so that the life cycle can be tested with fakes.

use crate::containerd::{Access, Images};
use executors::{
    CheckpointOptions, Choice, Console, CreateOptions, Criu, ExecSpec, Exit, OomWatch, Result, RootfsMount, Stats,
    Stdio,
};
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
    fn restorable(
        self: Box<Self>,
        rootfs: &[RootfsMount],
        images: &Path,
        criu: &Criu,
        options: &CreateOptions,
    ) -> Result<Box<dyn Restorable>>;
}

/// See [`executors::Restorable`].
pub trait Restorable: Send {
    fn choice(&self) -> &Choice;
    fn owns_pid_namespace(&self) -> bool;
    fn restore(self: Box<Self>, stdio: Stdio) -> Result<Box<dyn Container>>;
}

/// See [`executors::Container`].
pub trait Container: Send + Sync {
    fn choice(&self) -> &Choice;
    fn init(&self) -> Arc<dyn Process>;
    fn owns_pid_namespace(&self) -> bool;
    fn exec(&self, spec: &ExecSpec, stdio: Stdio) -> Result<Arc<dyn Process>>;
    fn freeze(&self) -> Result<()>;
    fn thaw(&self) -> Result<()>;
    fn update(&self, resources: &[u8]) -> Result<()>;
    fn stats(&self) -> Result<Stats>;
    fn checkpoint(&self, bundle: &Path, criu: &Criu, options: &CheckpointOptions) -> Result<()>;
    fn watch_oom(&self) -> Result<Option<OomWatch>>;
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
    fn take_console(&self) -> Option<Console>;
}

/// The CRI's annotation for the image of a container, by the name in the pod's spec.
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// The executors of this machine, and the images of containerd.
pub struct Host {
    pub access: Access,
}

impl Engine for Host {
    fn open(&self, id: &str, path: &Path) -> Result<Box<dyn Bundle>> {
        let bundle = executors::Bundle::open(id, path)?;
        let images = Images::of_container(&self.access, id, bundle.annotation(IMAGE_NAME));
        Ok(Box::new(OfContainerd { bundle, images }))
    }
}

/// A bundle of containerd's, and the image that it comes from.
struct OfContainerd {
    bundle: executors::Bundle,
    images: Images,
}

impl Bundle for OfContainerd {
    fn terminal(&self) -> bool {
        self.bundle.terminal()
    }

    fn create(
        self: Box<Self>,
        rootfs: &[RootfsMount],
        stdio: Stdio,
        options: &CreateOptions,
    ) -> Result<Box<dyn Container>> {
        Ok(Box::new(executors::create_from(&self.images, self.bundle, rootfs, stdio, options)?))
    }

    fn restorable(
        self: Box<Self>,
        rootfs: &[RootfsMount],
        images: &Path,
        criu: &Criu,
        options: &CreateOptions,
    ) -> Result<Box<dyn Restorable>> {
        Ok(Box::new(executors::Restorable::new(self.bundle, rootfs, images, criu, options)?))
    }
}

impl Restorable for executors::Restorable {
    fn choice(&self) -> &Choice {
        executors::Restorable::choice(self)
    }

    fn owns_pid_namespace(&self) -> bool {
        executors::Restorable::owns_pid_namespace(self)
    }

    fn restore(self: Box<Self>, stdio: Stdio) -> Result<Box<dyn Container>> {
        Ok(Box::new(executors::Restorable::restore(*self, stdio)?))
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

    fn exec(&self, spec: &ExecSpec, stdio: Stdio) -> Result<Arc<dyn Process>> {
        Ok(Arc::new(executors::Container::exec(self, spec, stdio)?))
    }

    fn freeze(&self) -> Result<()> {
        executors::Container::freeze(self)
    }

    fn thaw(&self) -> Result<()> {
        executors::Container::thaw(self)
    }

    fn update(&self, resources: &[u8]) -> Result<()> {
        executors::Container::update(self, resources)
    }

    fn stats(&self) -> Result<Stats> {
        executors::Container::stats(self)
    }

    fn checkpoint(&self, bundle: &Path, criu: &Criu, options: &CheckpointOptions) -> Result<()> {
        executors::Container::checkpoint(self, bundle, criu, options)
    }

    fn watch_oom(&self) -> Result<Option<OomWatch>> {
        executors::Container::watch_oom(self)
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

    fn take_console(&self) -> Option<Console> {
        executors::Process::take_console(self)
    }
}
