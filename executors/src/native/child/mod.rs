//! The child's half: runs a plan's steps between clone3(2) and execve(2).
//!
//! It is a copy of a process with threads, of which it has one: what locks guard (malloc, stdio, log) may be broken for
//! ever. So nothing here allocates, frees, locks, formats, logs or panics; descriptors are closed by execve or `_exit`.
//!
//! The conversation with the parent, over a socket pair of sequenced packets:
//! ```text
//! child                          parent
//!   <---- GO ------------------    the parent has done what only it may: mapped the ids of a new user namespace, moved
//!                                  network devices (only where there is such a thing)
//!   ----- (HOOKS, 0) --------->    its environment is there (init only, and only where the spec has hooks that see it)
//!   <---- GO ------------------    they have run
//!   ----- (TERMINAL, 0) ------>    with both ends of a terminal (only where the child opens it)
//!   ----- (LISTENER, fd) ----->    of a filter with notifications
//!   <---- GO ------------------    it has a copy
//!   ----- (READY, 0) --------->    created (init only: an exec'd process goes on at once)
//!   <---- GO ------------------    start   (init only)
//!   ----- end of file -------->    execve happened
//!   ----- (step, errno) ------>    or: this step failed; the child exits
//! ```

mod copy;
mod identity;
mod program;
mod streams;
mod tree;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{MountPropagationFlags, MoveMountFlags};
use rustix::thread::ThreadNameSpaceType;

use self::identity::{become_user, drop_bounding, hide_memory, write_attribute, write_proc};
use self::streams::{stdio, terminal};
use self::tree::{READ_ONLY, WRITABLE, clone_tree, propagation_flags};
use super::filesystem::{make_filesystem, mount_of};
use super::step::{Plan, Program, Step};
use crate::procfs::write_below;
use crate::sys;

/// What the parent sends to let the child go on.
pub(crate) const GO: u8 = 1;

/// In place of a step's index: everything up to the start is done.
pub(crate) const READY: u32 = u32::MAX;

/// In place of a step's index: master and slave of the terminal come with it.
pub(crate) const TERMINAL: u32 = u32::MAX - 1;

/// In place of a step's index: everything up to the hooks is done.
pub(crate) const HOOKS: u32 = u32::MAX - 2;

/// In place of a step's index: the number of the listener's descriptor comes in place of an error.
pub(crate) const LISTENER: u32 = u32::MAX - 3;

/// What the child reports: a step's index and why it failed, or one of the words above and 0 or what is said there.
pub(crate) struct Report {
    pub step: u32,
    pub errno: i32,
}

impl Report {
    pub const SIZE: usize = 8;

    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; Self::SIZE]) -> Self {
        Self { step: u32::from_ne_bytes([a, b, c, d]), errno: i32::from_ne_bytes([e, f, g, h]) }
    }

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let ([a, b, c, d], [e, f, g, h]) = (self.step.to_ne_bytes(), self.errno.to_ne_bytes());
        [a, b, c, d, e, f, g, h]
    }
}

/// The exit code of a child that could not execute its program, as the shells have it (and runc).
const FAILED: i32 = 255;

/// What steps hand on to later ones.
struct Context<'a> {
    plan: &'a Plan,
    parent: BorrowedFd<'a>,
    rootfs: Option<BorrowedFd<'a>>,
    /// The mount that was attached last.
    attached: Option<BorrowedFd<'a>>,
    /// The empty read-only tmpfs in front of masked folders, once there is one.
    mask: Option<BorrowedFd<'a>>,
    /// The mount tree that the runner's guest gets to see.
    guest_root: Option<BorrowedFd<'a>>,
    /// The slave of the terminal that was opened here.
    terminal: Option<BorrowedFd<'a>>,
    /// Which of the program's candidates to execute.
    found: usize,
    /// Whether the current folder is that of the spec.
    in_cwd: bool,
    /// Whether all is closed that the program must not get.
    closed: bool,
}

/// Runs the plan. Returns only when something failed, with the exit code.
pub(crate) fn run(plan: &Plan, parent: BorrowedFd<'_>) -> i32 {
    let mut context = Context::new(plan, parent);
    // The first of all: it is in the container's pid namespace already.
    let failure = match hide_memory().and_then(|()| sys::reset_signals()) {
        Err(errno) => (0, errno),
        Ok(()) => match run_steps(&mut context) {
            Ok(()) => return FAILED,
            Err(failure) => failure,
        },
    };
    let (step, errno) = failure;
    // If the parent is gone there is nobody to tell.
    let _ = rustix::io::write(parent, &Report { step, errno: errno.raw_os_error() }.to_bytes());
    FAILED
}

/// Runs steps on a process that is there only to have the real one born where it then is: see `launch.rs`.
pub(crate) fn run_before(plan: &Plan, steps: &[Step], parent: BorrowedFd<'_>) -> std::result::Result<(), (u32, Errno)> {
    let mut context = Context::new(plan, parent);
    hide_memory().map_err(|errno| (0, errno))?;
    steps.iter().zip(0..).try_for_each(|(step, index)| context.step(step).map_err(|errno| (index, errno)))
}

fn run_steps<'a>(context: &mut Context<'a>) -> std::result::Result<(), (u32, Errno)> {
    let plan = context.plan;
    for (index, step) in plan.steps.iter().enumerate() {
        context.step(step).map_err(|errno| (index as u32, errno))?;
    }
    Ok(())
}

impl<'a> Context<'a> {
    fn new(plan: &'a Plan, parent: BorrowedFd<'a>) -> Self {
        Self {
            plan,
            parent,
            rootfs: None,
            attached: None,
            mask: None,
            guest_root: None,
            terminal: None,
            found: 0,
            in_cwd: false,
            closed: false,
        }
    }

    fn step(&mut self, step: &'a Step) -> Result<()> {
        match step {
            // Zero is the thread that writes (cgroup-v1/cgroups.rst, "Attaching processes").
            Step::JoinCgroups(files) => files.iter().try_for_each(|tasks| rustix::io::write(tasks, b"0").map(drop)),
            Step::OomScore(score) => write_proc(c"/proc/self/oom_score_adj", score.to_bytes()),
            Step::Session => rustix::process::setsid().map(drop),
            Step::AwaitParent => self.await_go(),
            Step::EnterFolder(path) => rustix::process::chdir(path.as_c_str()),
            Step::BecomeRoot => {
                rustix::thread::set_thread_groups(&[])?;
                become_user(0, 0)
            }
            Step::DieWithParent => {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            }
            Step::Join(namespace, kind, _) => rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind)),
            Step::JoinContainer(init, kinds) => rustix::thread::move_into_thread_name_spaces(init.as_fd(), *kinds),
            Step::Unshare(flags, _) => sys::unshare(*flags),
            Step::TimeOffsets(offsets) => write_proc(c"/proc/self/timens_offsets", offsets.to_bytes()),
            Step::Keyring(name) => match sys::join_session_keyring(name) {
                // A kernel without keyrings has nothing to keep apart.
                Err(Errno::NOSYS) => Ok(()),
                result => result,
            },
            Step::LoopbackUp => sys::loopback_up(),
            Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
            Step::Domainname(name) => rustix::system::setdomainname(name.to_bytes()),
            Step::Sysctl { proc_sys, path, value } => write_below(proc_sys.as_fd(), path, value.to_bytes()),
            Step::RootPropagation(propagation) => rustix::mount::mount_change(c"/", propagation_flags(*propagation)),
            Step::AttachRootfs { tree, at } => {
                self.rootfs = Some(tree.as_fd());
                self.attached = self.rootfs;
                rustix::mount::move_mount(
                    tree,
                    c"",
                    rustix::fs::CWD,
                    at.as_c_str(),
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )
            }
            Step::Attach { tree, at } => self.attach(tree.as_fd(), at),
            Step::AttachNew { context, attr, at } => self.attach(sys::leak(mount_of(context.as_fd(), *attr)?), at),
            Step::Bind { source, at } => self.bind(source, at),
            Step::SetAttr { attr, recursive } => match self.attached {
                Some(mount) => sys::mount_setattr(mount, *recursive, attr),
                None => Err(Errno::BADF),
            },
            Step::MountNew { filesystem, at } => self.attach(sys::leak(make_filesystem(filesystem, None)?), at),
            Step::MountLike { filesystem, at, copy } => self.mount_like(filesystem, at, *copy),
            Step::Remount { changes, attr, at } => self.remount(changes, attr, at),
            Step::Device { path, mode, device, uid, gid } => self.device(path, *mode, *device, *uid, *gid),
            Step::Symlink { target, at, replace } => self.symlink(target, at, *replace),
            Step::Mask(path) => self.mask(path),
            Step::ReadonlyPath(path) => self.readonly(path),
            Step::ReadonlyMount(path) => self.set_attr(path, &READ_ONLY),
            Step::ReadonlyRootfs => sys::mount_setattr(self.rootfs()?, false, &READ_ONLY),
            Step::GuestRoot { readonly } => {
                // Inside a detached tree mounts can't be changed one by one, so they are while it is copied.
                for path in readonly {
                    self.set_attr(path, &READ_ONLY)?;
                }
                self.guest_root = Some(clone_tree(self.rootfs()?, true)?);
                for path in readonly {
                    self.set_attr(path, &WRITABLE)?;
                }
                Ok(())
            }
            Step::GuestRootOfContainer { readonly, init } => {
                sys::unshare(libc::CLONE_NEWNS)?;
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change(c"/", private)?;
                let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                self.rootfs = Some(sys::leak(root));
                for path in readonly {
                    self.set_attr(path, &READ_ONLY)?;
                }
                self.guest_root = Some(clone_tree(self.rootfs()?, true)?);
                rustix::thread::move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)
            }
            Step::PivotRoot => self.pivot_root(),
            Step::MoveRoot { others } => self.move_root(others),
            Step::ChangeRoot(root) => {
                rustix::process::fchdir(root.as_ref().map_or_else(|| self.rootfs(), |root| Ok(root.as_fd()))?)?;
                rustix::process::chroot(c".")
            }
            Step::RootfsPropagation(propagation) => rustix::mount::mount_change(c"/", propagation_flags(*propagation)),
            Step::Stdio { fds, uid } => stdio(fds, *uid),
            Step::Terminal { slave, uid } => match slave.as_ref().map(AsFd::as_fd).or(self.terminal) {
                Some(slave) => terminal(slave, *uid),
                None => Err(Errno::BADF),
            },
            Step::Console(slave) => self.mount_console(slave.as_fd()),
            Step::OpenTerminal { size } => self.open_terminal(*size),
            Step::Rlimit(resource, limit) => rustix::process::setrlimit(*resource, *limit),
            Step::AppArmor(profile) => match write_attribute(c"apparmor/exec", profile) {
                // Before Linux 5.8.
                Err(Errno::NOENT) => write_attribute(c"exec", profile),
                result => result,
            },
            Step::BoundingSet { keep } => drop_bounding(*keep),
            Step::KeepCapabilities => rustix::thread::set_keep_capabilities(true),
            Step::Groups(groups) => rustix::thread::set_thread_groups(groups),
            Step::Ids { uid, gid } => become_user(*uid, *gid),
            Step::Capabilities { sets, ambient } => {
                rustix::thread::set_capabilities(None, *sets)?;
                rustix::thread::clear_ambient_capability_set()?;
                for capability in ambient.iter() {
                    rustix::thread::configure_capability_in_ambient_set(capability, true)?;
                }
                Ok(())
            }
            Step::CapabilitySets(sets) => rustix::thread::set_capabilities(None, *sets),
            Step::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::MakeCwd(path) => self.make_cwd(path),
            Step::Cwd { path, may_fail } => self.enter_cwd(path, *may_fail),
            Step::Scheduling(scheduling) => scheduling.apply(),
            Step::Label { file, label } => write_attribute(file, label),
            Step::CwdOf(folder) => rustix::process::fchdir(folder),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Seccomp { program, flags, agent } => {
                let listener = sys::seccomp_filter(program, *flags)?;
                if agent.is_some() { self.pass_listener(listener) } else { Ok(()) }
            }
            Step::FindProgram => self.find_program(),
            Step::AwaitHooks { keep } => {
                self.close_all_but(keep)?;
                self.pause(HOOKS)
            }
            Step::CloseOthers => self.close_others(),
            Step::CloseForExec => self.close_for_exec(),
            Step::AwaitStart => self.pause(READY),
            Step::Exec => Err(self.exec()),
            #[cfg(test)]
            Step::Failing(_) => Err(Errno::NOTRECOVERABLE),
        }
    }

    /// Closes what this process has of the shim's and doesn't need any more. It may wait for its start for long, and other
    /// containers' pipes and terminals must not stay open meanwhile because it has a copy.
    fn close_others(&self) -> Result<()> {
        const MAX: usize = 8;
        let mut keep = [RawFd::MAX; MAX];
        let passed: &[OwnedFd] = if let Program::File { pass, .. } = &self.plan.program { pass } else { &[] };
        let file = if let Program::File { file, .. } = &self.plan.program { Some(file.as_fd()) } else { None };
        let needed = [file, self.guest_root].into_iter().flatten().chain(passed.iter().map(AsFd::as_fd));
        let mut slots = keep.iter_mut();
        for fd in needed {
            *slots.next().ok_or(Errno::MFILE)? = fd.as_raw_fd();
        }
        keep.sort_unstable();
        self.close_all_but(&keep)
    }

    /// Closes every descriptor from 3 on but the socket to the parent and those of `keep`, which are sorted.
    fn close_all_but(&self, keep: &[RawFd]) -> Result<()> {
        let mut first: RawFd = 3;
        let mut close_up_to = |number: RawFd| {
            let from = first;
            first = first.max(number.saturating_add(1));
            if number > from { sys::close_range(from, number - 1) } else { Ok(()) }
        };
        let socket = self.parent.as_raw_fd();
        let below = keep.partition_point(|number| *number < socket);
        let (below, above) = keep.split_at_checked(below).unwrap_or((keep, &[]));
        let numbers = below.iter().chain([&socket]).chain(above).chain([&RawFd::MAX]);
        numbers.copied().try_for_each(&mut close_up_to)
    }

    /// Reports how far this process is, and waits for the parent's word.
    fn pause(&self, at: u32) -> Result<()> {
        rustix::io::write(self.parent, &Report { step: at, errno: 0 }.to_bytes())?;
        self.await_go()
    }

    /// Lets the parent have a copy of the listener of this process's filter. With no more calls than a start takes, for each
    /// must get through that filter.
    fn pass_listener(&self, listener: RawFd) -> Result<()> {
        rustix::io::write(self.parent, &Report { step: LISTENER, errno: listener }.to_bytes())?;
        self.await_go()?;
        // Else notifications would wait for this process when the agent has died.
        sys::close(listener);
        Ok(())
    }

    /// Waits for the parent's word.
    fn await_go(&self) -> Result<()> {
        let mut word = [0u8; 1];
        loop {
            match rustix::io::read(self.parent, &mut word) {
                Err(Errno::INTR) => {}
                Ok(1) if word == [GO] => return Ok(()),
                Ok(_) => sys::exit(FAILED),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn rootfs(&self) -> Result<BorrowedFd<'a>> {
        self.rootfs.ok_or(Errno::BADF)
    }
}
