//! The child's half: runs a plan's steps between clone3(2) and execve(2).
//!
//! It is a copy of a process with threads, of which it has one: what locks guard (malloc, stdio, log) may be broken for
//! ever. So nothing here allocates, frees, locks, formats, logs or panics; descriptors are closed by execve or `_exit`.
//!
//! The conversation with the parent, over a socket pair of sequenced packets:
//! ```text
//! child                          parent
//!   <---- GO ------------------    the ids of a new user namespace are mapped (only where there is one)
//!   ----- (HOOKS, 0) --------->    its environment is there (init only, and only where the spec has hooks that see it)
//!   <---- GO ------------------    they have run
//!   ----- (TERMINAL, 0) ------>    with both ends of a terminal (only where the child opens it)
//!   ----- (READY, 0) --------->    created (init only: an exec'd process goes on at once)
//!   <---- GO ------------------    start   (init only)
//!   ----- end of file -------->    execve happened
//!   ----- (step, errno) ------>    or: this step failed; the child exits
//! ```

use std::ffi::{CStr, CString};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::DumpableBehavior;
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::ThreadNameSpaceType;

use super::filesystem::make_filesystem;
use super::resolve::{self, Make};
use super::step::{Plan, Program, Step, Target};
use crate::console;
use crate::sys::{self, MountAttr};

/// What the parent sends to let the child go on.
pub(crate) const GO: u8 = 1;

/// In place of a step's index: everything up to the start is done.
pub(crate) const READY: u32 = u32::MAX;

/// In place of a step's index: master and slave of the terminal come with it.
pub(crate) const TERMINAL: u32 = u32::MAX - 1;

/// In place of a step's index: everything up to the hooks is done.
pub(crate) const HOOKS: u32 = u32::MAX - 2;

/// What the child reports: a step's index and why it failed, or one of the words above and 0.
pub(crate) struct Report {
    pub step: u32,
    pub errno: i32,
}

impl Report {
    pub const SIZE: usize = 8;

    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; Self::SIZE]) -> Self {
        Self { step: u32::from_ne_bytes([a, b, c, d]), errno: i32::from_ne_bytes([e, f, g, h]) }
    }

    fn to_bytes(&self) -> [u8; Self::SIZE] {
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
}

/// Runs the plan. Returns only when something failed, with the exit code.
pub(crate) fn run(plan: &Plan, parent: BorrowedFd<'_>) -> i32 {
    let mut context =
        Context { plan, parent, rootfs: None, attached: None, mask: None, guest_root: None, terminal: None, found: 0 };
    let failure = match sys::reset_signals() {
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

fn run_steps<'a>(context: &mut Context<'a>) -> std::result::Result<(), (u32, Errno)> {
    let plan = context.plan;
    for (index, step) in plan.steps.iter().enumerate() {
        context.step(step).map_err(|errno| (index as u32, errno))?;
    }
    Ok(())
}

impl<'a> Context<'a> {
    fn step(&mut self, step: &'a Step) -> Result<()> {
        match step {
            // Zero is the thread that writes (cgroup-v1/cgroups.rst, "Attaching processes").
            Step::JoinCgroups(files) => files.iter().try_for_each(|tasks| rustix::io::write(tasks, b"0").map(drop)),
            Step::OomScore(score) => write_proc(c"/proc/self/oom_score_adj", score.to_bytes()),
            Step::Session => rustix::process::setsid().map(drop),
            Step::AwaitMappings => {
                hide_memory()?;
                self.await_go()
            }
            Step::EnterFolder(path) => rustix::process::chdir(path.as_c_str()),
            Step::BecomeRoot => {
                rustix::thread::set_thread_groups(&[])?;
                become_user(0, 0)
            }
            Step::DieWithParent => {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            }
            Step::Join(namespace, _) => rustix::thread::move_into_link_name_space(namespace.as_fd(), None),
            Step::JoinContainer(init, kinds) => {
                hide_memory()?;
                rustix::thread::move_into_thread_name_spaces(init.as_fd(), *kinds)
            }
            Step::Unshare(flags, _) => sys::unshare(*flags),
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
                rustix::mount::move_mount(
                    tree,
                    c"",
                    rustix::fs::CWD,
                    at.as_c_str(),
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )
            }
            Step::Attach { tree, at } => self.attach(tree.as_fd(), at),
            Step::SetAttr { attr, recursive } => match self.attached {
                Some(mount) => sys::mount_setattr(mount, *recursive, attr),
                None => Err(Errno::BADF),
            },
            Step::MountNew { filesystem, at } => self.attach(sys::leak(make_filesystem(filesystem)?), at),
            Step::Device { path, mode, device, uid, gid } => self.device(path, *mode, *device, *uid, *gid),
            Step::Symlink { target, at } => self.symlink(target, at),
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
            Step::RootfsPropagation(propagation) => rustix::mount::mount_change(c"/", propagation_flags(*propagation)),
            Step::Stdio { fds, uid } => stdio(fds, *uid),
            Step::Terminal { slave, uid } => match slave.as_ref().map(AsFd::as_fd).or(self.terminal) {
                Some(slave) => terminal(slave, *uid),
                None => Err(Errno::BADF),
            },
            Step::Console(slave) => self.mount_console(slave.as_fd()),
            Step::OpenTerminal { size } => self.open_terminal(*size),
            Step::Rlimit(resource, limit) => rustix::process::setrlimit(*resource, *limit),
            Step::AppArmor(profile) => {
                match write_proc(c"/proc/thread-self/attr/apparmor/exec", profile.to_bytes()) {
                    // Before Linux 5.8.
                    Err(Errno::NOENT) => write_proc(c"/proc/thread-self/attr/exec", profile.to_bytes()),
                    result => result,
                }
            }
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
            Step::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::Cwd(path) => rustix::process::chdir(path.as_c_str()),
            Step::CwdOf(folder) => rustix::process::fchdir(folder),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Seccomp { program, flags } => sys::seccomp_filter(program, *flags),
            Step::FindProgram => self.find_program(),
            Step::AwaitHooks { keep } => {
                self.close_all_but(keep)?;
                self.pause(HOOKS)
            }
            Step::AwaitStart => {
                self.close_others()?;
                self.pause(READY)
            }
            Step::Exec => Err(self.exec()),
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

    fn mount_console(&self, slave: BorrowedFd<'_>) -> Result<()> {
        let console = clone_tree(slave, false)?;
        let target = resolve::open_or_make(self.rootfs()?, c"/dev/console", Make::File)?;
        attach_at(console, sys::leak(target))
    }

    fn open_terminal(&mut self, size: Option<Winsize>) -> Result<()> {
        let devpts = resolve::open(self.rootfs()?, c"/dev/pts", OFlags::DIRECTORY)?;
        let (master, slave) = console::open_pair(sys::leak(devpts))?;
        let (master, slave) = (sys::leak(master), sys::leak(slave));
        if let Some(size) = size {
            tcsetwinsize(master, size)?;
        }
        let ends = [master, slave];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&ends));
        let report = Report { step: TERMINAL, errno: 0 }.to_bytes();
        rustix::net::sendmsg(self.parent, &[IoSlice::new(&report)], &mut control, SendFlags::NOSIGNAL)?;
        self.terminal = Some(slave);
        self.mount_console(slave)
    }

    fn rootfs(&self) -> Result<BorrowedFd<'a>> {
        self.rootfs.ok_or(Errno::BADF)
    }

    fn attach(&mut self, tree: BorrowedFd<'a>, at: &Target) -> Result<()> {
        let rootfs = self.rootfs()?;
        let target = if at.no_symlinks {
            match resolve::open_no_symlinks(rootfs, &at.path, OFlags::empty()) {
                Err(Errno::NOENT) => {
                    resolve::open_or_make(rootfs, &at.path, at.make)?;
                    resolve::open_no_symlinks(rootfs, &at.path, OFlags::empty())?
                }
                result => result?,
            }
        } else {
            resolve::open_or_make(rootfs, &at.path, at.make)?
        };
        self.attached = Some(tree);
        attach_at(tree, sys::leak(target))
    }

    /// Changes the mount at a path inside the rootfs.
    fn set_attr(&self, path: &CStr, attr: &MountAttr) -> Result<()> {
        let mount = sys::leak(resolve::open(self.rootfs()?, path, OFlags::empty())?);
        sys::mount_setattr(mount, false, attr)
    }

    fn device(&self, path: &CStr, mode: u32, device: u64, uid: u32, gid: u32) -> Result<()> {
        let (directory, name) = self.parent_of(path)?;
        match rustix::fs::mknodat(
            directory,
            name,
            FileType::from_raw_mode(mode),
            Mode::from_raw_mode(mode & 0o7777),
            device,
        ) {
            // The image has it, or it was listed twice.
            Err(Errno::EXIST) => return Ok(()),
            result => result?,
        }
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn symlink(&self, target: &CStr, at: &CStr) -> Result<()> {
        let (directory, name) = self.parent_of(at)?;
        match rustix::fs::symlinkat(target, directory, name) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// The folder that `path` is in, made if missing, and the path's last component.
    fn parent_of<'p>(&self, path: &'p CStr) -> Result<(BorrowedFd<'static>, &'p CStr)> {
        let bytes = path.to_bytes_with_nul();
        let slash = bytes.iter().rposition(|b| *b == b'/').ok_or(Errno::INVAL)?;
        let name = bytes.get(slash + 1..).and_then(|name| CStr::from_bytes_with_nul(name).ok()).ok_or(Errno::INVAL)?;
        let mut parent = [0u8; libc::PATH_MAX as usize];
        let slot = parent.get_mut(..slash.max(1)).ok_or(Errno::NAMETOOLONG)?;
        slot.copy_from_slice(bytes.get(..slash.max(1)).ok_or(Errno::INVAL)?);
        let parent = CStr::from_bytes_until_nul(&parent).map_err(|_| Errno::NAMETOOLONG)?;
        let directory = resolve::open_or_make(self.rootfs()?, parent, Make::Directory)?;
        Ok((sys::leak(directory), name))
    }

    fn mask(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        if FileType::from_raw_mode(rustix::fs::fstat(target)?.st_mode) != FileType::Directory {
            // Before pivot_root this is the host's /dev/null, not one that the image made (CVE-2025-31133).
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let null = sys::leak(rustix::fs::open(c"/dev/null", flags, Mode::empty())?);
            return attach_at(clone_tree(null, false)?, target);
        }
        self.mask_folder(target)
    }

    fn mask_folder(&mut self, target: BorrowedFd<'_>) -> Result<()> {
        if let Some(mask) = self.mask {
            return attach_at(clone_tree(mask, false)?, target);
        }
        let mask = sys::leak(make_filesystem(&self.plan.mask)?);
        self.mask = Some(mask);
        attach_at(mask, target)
    }

    fn readonly(&self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = clone_tree(target, true)?;
        sys::mount_setattr(tree, true, &READ_ONLY)?;
        attach_at(tree, target)
    }

    /// Opens a path inside the rootfs if it is there.
    fn existing(&self, path: &CStr) -> Result<Option<BorrowedFd<'static>>> {
        match resolve::open(self.rootfs()?, path, OFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            target => Ok(Some(sys::leak(target?))),
        }
    }

    /// pivot_root(2) with both folders the same: the old root lands on top of the new one and is unmounted from there.
    fn pivot_root(&self) -> Result<()> {
        rustix::process::fchdir(self.rootfs()?)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }

    /// For hosts where pivot_root(2) can't be; see `move_root.rs`.
    fn move_root(&mut self, others: &[CString]) -> Result<()> {
        let rootfs = self.rootfs()?;
        rustix::process::fchdir(rootfs)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(rootfs, c"", rustix::fs::CWD, c"/", flags)?;
        // This process's root is still the host's, below the mount that has just come.
        for path in others {
            match rustix::mount::unmount(path.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                // Locked by whoever made this mount namespace (mount_namespaces(7)).
                Err(Errno::INVAL | Errno::PERM) => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    match rustix::fs::open(path.as_c_str(), flags, Mode::empty()) {
                        Ok(folder) => self.mask_folder(sys::leak(folder))?,
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        rustix::process::chroot(c".")?;
        rustix::process::chdir(c"/")
    }

    fn find_program(&mut self) -> Result<()> {
        let Program::Paths(candidates) = &self.plan.program else { return Ok(()) };
        let mut worst = Errno::NOENT;
        for (index, candidate) in candidates.iter().enumerate() {
            match executable(candidate) {
                Ok(()) => {
                    self.found = index;
                    return Ok(());
                }
                // A name that is there but can't be executed says more than one that isn't (execvp(3)).
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => worst = errno,
            }
        }
        Err(worst)
    }

    fn exec(&self) -> Errno {
        let plan = self.plan;
        let (file, pass) = match &plan.program {
            Program::Paths(candidates) => {
                let Some(path) = candidates.get(self.found) else { return Errno::NOENT };
                if let Err(errno) = sys::close_range_on_exec(3) {
                    return errno;
                }
                return sys::execve(path, &plan.argv, &plan.envp);
            }
            Program::File { file, pass } => (file, pass),
        };
        // What the plan passes was opened above the numbers it is passed as, so nothing is overwritten; the guest's root
        // comes last.
        let mut number: RawFd = 3;
        for descriptor in pass.iter().map(AsFd::as_fd).chain(self.guest_root) {
            if let Err(errno) = sys::dup2(descriptor, number) {
                return errno;
            }
            number += 1;
        }
        if let Err(errno) = sys::close_range_on_exec(number) {
            return errno;
        }
        sys::fexecve(file.as_fd(), &plan.argv, &plan.envp)
    }
}

const READ_ONLY: MountAttr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };

const WRITABLE: MountAttr = MountAttr { set: 0, clear: libc::MOUNT_ATTR_RDONLY, propagation: 0, userns_fd: 0 };

fn propagation_flags(flags: u64) -> MountPropagationFlags {
    MountPropagationFlags::from_bits_retain(flags as u32)
}

/// Whether a file can be executed by this process as it is now: execve(2)'s own conditions, without executing.
fn executable(path: &CStr) -> Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
}

fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A detached copy of the mount at `from`, or of the tree below it too.
fn clone_tree(from: BorrowedFd<'_>, recursive: bool) -> Result<BorrowedFd<'static>> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(from, c"", flags).map(sys::leak)
}

fn drop_bounding(keep: rustix::thread::CapabilitySet) -> Result<()> {
    for capability in 0..64 {
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << capability);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel knows no higher ones.
            Err(Errno::INVAL) => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

/// Until execve(2) this process has the shim's memory and descriptors, which nobody in the container may get by ptrace(2)
/// or /proc, though a root with CAP_SYS_PTRACE over the same user namespace (CVE-2016-9962).
fn hide_memory() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn become_user(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn stdio(fds: &[OwnedFd; 3], uid: u32) -> Result<()> {
    for (number, fd) in fds.iter().enumerate() {
        let stat = rustix::fs::fstat(fd)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        // Fifos and sockets are this container's own; files and devices belong to others.
        if stat.st_uid != uid && matches!(file_type, FileType::Fifo | FileType::Socket) {
            match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
                Err(Errno::INVAL | Errno::PERM | Errno::ROFS) | Ok(()) => {}
                Err(errno) => return Err(errno),
            }
        }
        sys::dup2(fd.as_fd(), number as RawFd)?;
    }
    Ok(())
}

/// Makes the terminal this session's controlling one, its three standard descriptors, and the user's.
fn terminal(slave: BorrowedFd<'_>, uid: u32) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    // In a user namespace the parent has seen to it where this process may not.
    if rustix::fs::fstat(slave)?.st_uid != uid {
        rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None)?;
    }
    (0..3).try_for_each(|number| sys::dup2(slave, number))
}

/// Opens `path` below `directory`, which is known to be procfs, and writes all of `value` at once.
fn write_below(directory: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(sys::leak(file), value).map(drop)
}

/// Writes to a file of the host's /proc: only before this process has joined or made a mount namespace of the container.
fn write_proc(path: &CStr, value: &[u8]) -> Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(sys::leak(file), value).map(drop)
}
