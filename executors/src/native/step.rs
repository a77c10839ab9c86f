//! The steps of a plan: what a new process does to itself, in order, until it executes its program.
//!
//! A step holds everything it needs, descriptors and C strings, so that running it only makes system calls.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType};

use super::filesystem::NewFilesystem;
use super::resolve::Make;
use super::scheduling::Scheduling;
use super::seccomp::Agent;
use crate::sys::{BpfProgram, CStringArray, MountAttr};

/// A place inside the rootfs.
pub(crate) struct Target {
    /// Absolute as in the spec; resolved inside the rootfs.
    pub path: CString,
    /// What to make there if it is missing.
    pub make: Make,
    /// Refuse symlinks on the way: for procfs and sysfs, whose paths later steps trust (CVE-2023-27561).
    pub no_symlinks: bool,
}

/// A file or folder of the host that is bound. The child finds it by its path, in its own copy of the host's mounts.
pub(crate) struct Source {
    /// Without symlinks.
    pub path: CString,
    /// Device and inode of what the parent has looked at.
    pub file: (u64, u64),
    pub recursive: bool,
    /// What is changed of the copy, each with whether that is recursive.
    pub changes: Vec<(MountAttr, bool)>,
    /// The same for a mount whose attributes are locked by whoever made this mount namespace (mount_namespaces(7)).
    pub changes_of_locked: Vec<(MountAttr, bool)>,
}

/// The program that the last step executes.
pub(crate) enum Program {
    /// The candidates for `args[0]`, in the order of PATH; the first that can be executed is taken.
    Paths(Vec<CString>),
    /// An open file, executed with these descriptors as 3, 4, …
    File { file: OwnedFd, pass: Vec<OwnedFd> },
}

/// One step.
pub(crate) enum Step {
    /// Enter the cgroups of v1, and the group of resctrl, whose `tasks` files these are.
    ///
    /// Moving another process takes the kernel milliseconds (it waits for an RCU grace period); a thread that moves itself
    /// needs no such wait, and this process has one thread.
    JoinCgroups(Vec<OwnedFd>),
    /// Set the score by which the kernel chooses what to kill when memory runs out.
    OomScore(CString),
    /// A session of its own, so that signals to the shim's terminal don't reach it.
    Session,
    /// Wait until the parent has done what only it may, such as mapping the ids of the new user namespace.
    AwaitParent,
    /// Enter a folder of the host, while this process still owns what the host's root does.
    EnterFolder(CString),
    /// Become the root of the user namespace, in no other groups: who the files are that it makes.
    BecomeRoot,
    /// SIGKILL when the thread that made this process ends (PR_SET_PDEATHSIG): a hook of a dead shim is nobody's.
    DieWithParent,
    /// Join the namespace behind the descriptor, which must be of this kind. The text says which, for errors.
    Join(OwnedFd, LinkNameSpaceType, &'static str),
    /// Join these namespaces (CLONE_NEW*) of the process behind the pidfd.
    JoinContainer(OwnedFd, ThreadNameSpaceType),
    /// Namespaces that must be made after the process is in its cgroups.
    Unshare(i32, &'static str),
    /// The clocks of the time namespace that this process has made for its children.
    TimeOffsets(CString),
    Keyring(CString),
    /// Bring up the loopback interface of a new network namespace.
    LoopbackUp,
    Hostname(CString),
    Domainname(CString),
    /// Write `value` to `path` below the host's /proc/sys, held by the descriptor.
    Sysctl {
        proc_sys: Arc<OwnedFd>,
        path: CString,
        value: CString,
    },
    /// Change the propagation of `/` and all below it.
    RootPropagation(u64),
    /// Attach the rootfs at this path of the host and make it what later targets are resolved in.
    AttachRootfs {
        tree: OwnedFd,
        at: CString,
    },
    /// Attach a detached mount tree.
    Attach {
        tree: OwnedFd,
        at: Target,
    },
    /// Mount a file system that the parent has made, and attach it.
    AttachNew {
        context: OwnedFd,
        /// MOUNT_ATTR_* flags.
        attr: u64,
        at: Target,
    },
    /// Attach a copy of a mount of the host's.
    Bind {
        source: Source,
        at: Target,
    },
    /// Make attributes or propagation of the mount attached by the last step so.
    SetAttr {
        attr: MountAttr,
        recursive: bool,
    },
    /// Make a file system and attach it.
    MountNew {
        filesystem: NewFilesystem,
        at: Target,
    },
    /// The same for one that has the mode of the folder that it hides, unless that is among its parameters, and with
    /// `copy` what is in it.
    MountLike {
        filesystem: NewFilesystem,
        at: Target,
        copy: bool,
    },
    /// Change the mount at a path, and with `changes` its file system.
    Remount {
        changes: NewFilesystem,
        attr: MountAttr,
        at: CString,
    },
    Device {
        path: CString,
        mode: u32,
        device: u64,
        uid: u32,
        gid: u32,
    },
    Symlink {
        target: CString,
        at: CString,
        /// Take away what is there; else it stays.
        replace: bool,
    },
    /// Hide a path: a file behind /dev/null, a folder behind an empty read-only tmpfs. Missing paths are skipped.
    Mask(CString),
    /// Make a path read-only. Missing paths are skipped.
    ReadonlyPath(CString),
    /// Make the mount at a path read-only, after everything below it was attached.
    ReadonlyMount(CString),
    /// Make the rootfs itself read-only.
    ReadonlyRootfs,
    /// Report that the environment is there, and wait until the hooks have run that may add to it. Meanwhile this process
    /// has no more open than these descriptors, which are sorted.
    AwaitHooks {
        keep: Vec<RawFd>,
    },
    /// Keep a copy of the finished mount tree, to be passed to the runner behind its other descriptors. These mounts, which
    /// are writable, are read-only in the copy.
    GuestRoot {
        readonly: Vec<CString>,
    },
    /// The same for a process that has joined the container's mount namespace: by way of a copy of that namespace, so that
    /// nothing changes for the others in it. `init` is the pidfd to come back by.
    GuestRootOfContainer {
        readonly: Vec<CString>,
        init: OwnedFd,
    },
    PivotRoot,
    /// Instead of that: move the rootfs onto `/`, detach these mounts of the host, and chroot(2).
    MoveRoot {
        others: Vec<CString>,
    },
    /// Instead of that, in the host's mount namespace: chroot(2) into this folder, or into the rootfs.
    ChangeRoot(Option<OwnedFd>),
    /// Propagation of the rootfs mount, after it became `/`.
    RootfsPropagation(u64),
    /// The three standard descriptors, made the user's so that it may reopen them by /proc/self/fd.
    Stdio {
        fds: [OwnedFd; 3],
        uid: u32,
    },
    /// The three standard descriptors are this terminal, which becomes the session's controlling one and the user's own.
    Terminal {
        /// None: that of `OpenTerminal`.
        slave: Option<OwnedFd>,
        uid: u32,
    },
    /// Mount the terminal at /dev/console.
    Console(OwnedFd),
    /// Open a terminal in the devpts that this process has mounted, send it to the parent, mount it at /dev/console.
    OpenTerminal {
        size: Option<Winsize>,
    },
    Rlimit(Resource, Rlimit),
    /// AppArmor profile for the next execve(2).
    AppArmor(CString),
    /// Capabilities to drop from the bounding set.
    BoundingSet {
        keep: CapabilitySet,
    },
    /// Keep permitted capabilities over the change of user.
    KeepCapabilities,
    Groups(Vec<rustix::fs::Gid>),
    Ids {
        uid: u32,
        gid: u32,
    },
    Capabilities {
        sets: CapabilitySets,
        ambient: CapabilitySet,
    },
    /// The same but for the ambient ones, by the one call that a filter must allow.
    CapabilitySets(CapabilitySets),
    Umask(u32),
    /// Make the folder that the process is to run in, if it is missing.
    MakeCwd(CString),
    /// Enter it, unless that was done before. The host's root may enter where the user may not, and on a network's file
    /// system the other way round: so before the user is changed it may fail.
    Cwd {
        path: CString,
        may_fail: bool,
    },
    /// How the kernel is to run the process.
    Scheduling(Scheduling),
    /// SELinux labels of the next execve(2), or of keyrings made before: the file in /proc/thread-self/attr, and the label.
    Label {
        file: &'static CStr,
        label: CString,
    },
    /// The same for a folder of other namespaces.
    CwdOf(OwnedFd),
    NoNewPrivileges,
    Seccomp {
        program: Arc<BpfProgram>,
        flags: u32,
        /// Who is to get the listener, if the filter has one.
        agent: Option<Arc<Agent>>,
    },
    /// Look for the program, so that a missing one is told at create.
    FindProgram,
    /// Close what this process has of the shim's and doesn't need any more.
    CloseOthers,
    /// Let nothing else than the standard streams outlive execve(2), before a filter may forbid to say so.
    CloseForExec,
    /// Report that everything is ready, and wait for the start.
    AwaitStart,
    Exec,
    /// A step that fails in place of this one.
    #[cfg(test)]
    Failing(Box<Step>),
}

impl Step {
    /// The descriptors that it holds.
    fn descriptors(&self) -> Vec<RawFd> {
        let one = |fd: &OwnedFd| vec![fd.as_raw_fd()];
        match self {
            Step::JoinCgroups(fds) => fds.iter().map(AsRawFd::as_raw_fd).collect(),
            Step::Stdio { fds, .. } => fds.iter().map(AsRawFd::as_raw_fd).collect(),
            Step::Join(fd, ..) | Step::JoinContainer(fd, _) | Step::Console(fd) | Step::CwdOf(fd) => one(fd),
            Step::AttachNew { context, .. } => one(context),
            Step::AttachRootfs { tree, .. } | Step::Attach { tree, .. } => one(tree),
            Step::GuestRootOfContainer { init, .. } => one(init),
            Step::ChangeRoot(root) => root.iter().map(AsRawFd::as_raw_fd).collect(),
            Step::Terminal { slave, .. } => slave.iter().map(AsRawFd::as_raw_fd).collect(),
            Step::Sysctl { proc_sys, .. } => one(proc_sys),
            _ => Vec::new(),
        }
    }

    /// Rlimit resources by their OCI names.
    pub fn rlimit_name(resource: Resource) -> String {
        format!("RLIMIT_{}", format!("{resource:?}").to_uppercase())
    }
}

/// What was being tried, in words, with the field of the spec where there is one: for error messages.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::JoinCgroups(_) => write!(f, "enter the cgroup"),
            Step::OomScore(score) => write!(f, "process.oomScoreAdj: set {}", Text(score)),
            Step::Session => write!(f, "setsid"),
            Step::AwaitParent => write!(f, "wait for the shim"),
            Step::EnterFolder(path) => write!(f, "root: chdir to {}", Text(path)),
            Step::BecomeRoot => write!(f, "linux.uidMappings: become the root of the user namespace"),
            Step::DieWithParent => write!(f, "set the signal for the end of the shim"),
            Step::Join(_, _, name) => write!(f, "linux.namespaces: join the {name} namespace"),
            Step::JoinContainer(..) => write!(f, "join the container's namespaces"),
            Step::Unshare(_, name) => write!(f, "linux.namespaces: make a {name} namespace"),
            Step::TimeOffsets(offsets) => write!(f, "linux.timeOffsets: set {:?}", offsets),
            Step::Keyring(_) => write!(f, "join a session keyring"),
            Step::LoopbackUp => write!(f, "bring up the loopback interface"),
            Step::Hostname(name) => write!(f, "hostname: set {name:?}"),
            Step::Domainname(name) => write!(f, "domainname: set {name:?}"),
            Step::Sysctl { path, value, .. } => write!(f, "linux.sysctl: write {value:?} to /proc/sys/{}", Text(path)),
            Step::RootPropagation(_) => write!(f, "linux.rootfsPropagation: change the propagation of /"),
            Step::AttachRootfs { at, .. } => write!(f, "root: attach the rootfs at {}", Text(at)),
            Step::Attach { at, .. } | Step::AttachNew { at, .. } => write!(f, "mounts: attach at {}", Text(&at.path)),
            Step::Bind { source, at } => write!(f, "mounts: bind {} at {}", Text(&source.path), Text(&at.path)),
            Step::SetAttr { .. } => write!(f, "mounts: mount_setattr"),
            Step::MountNew { filesystem, at } | Step::MountLike { filesystem, at, .. } => {
                write!(f, "mounts: mount {} at {}", Text(&filesystem.fstype), Text(&at.path))
            }
            Step::Remount { at, .. } => write!(f, "mounts: remount {}", Text(at)),
            Step::Device { path, .. } => write!(f, "linux.devices: make {}", Text(path)),
            Step::Symlink { target, at, .. } => write!(f, "symlink {} to {}", Text(at), Text(target)),
            Step::Mask(path) => write!(f, "linux.maskedPaths: mask {}", Text(path)),
            Step::ReadonlyPath(path) => write!(f, "linux.readonlyPaths: make {} read-only", Text(path)),
            Step::ReadonlyMount(path) => write!(f, "mounts: make {} read-only", Text(path)),
            Step::GuestRoot { .. } | Step::GuestRootOfContainer { .. } => {
                write!(f, "copy the mount tree for the guest")
            }
            Step::ReadonlyRootfs => write!(f, "root.readonly: make the rootfs read-only"),
            Step::PivotRoot => write!(f, "pivot_root"),
            Step::ChangeRoot(_) => write!(f, "chroot"),
            Step::MoveRoot { .. } => write!(f, "no_pivot_root: move the rootfs onto /"),
            Step::RootfsPropagation(_) => write!(f, "linux.rootfsPropagation: change the propagation of the rootfs"),
            Step::Stdio { .. } => write!(f, "set up stdio"),
            Step::Terminal { .. } => write!(f, "process.terminal: make the terminal the process's own"),
            Step::Console(_) => write!(f, "process.terminal: mount the terminal at /dev/console"),
            Step::OpenTerminal { .. } => write!(f, "process.terminal: open a terminal in the container's /dev/pts"),
            Step::Rlimit(resource, limit) => write!(
                f,
                "process.rlimits: set {} to {} (hard {})",
                Step::rlimit_name(*resource),
                Limit(limit.current),
                Limit(limit.maximum)
            ),
            Step::AppArmor(profile) => write!(f, "process.apparmorProfile: {}", Text(profile)),
            Step::BoundingSet { .. } => write!(f, "process.capabilities.bounding: drop the others"),
            Step::KeepCapabilities => write!(f, "keep capabilities"),
            Step::Groups(_) => write!(f, "process.user.additionalGids: setgroups"),
            Step::Ids { uid, gid } => write!(f, "process.user: become {uid}:{gid}"),
            Step::Capabilities { .. } | Step::CapabilitySets(_) => write!(f, "process.capabilities: set"),
            Step::Umask(mask) => write!(f, "process.user.umask: {mask:04o}"),
            Step::CwdOf(_) => write!(f, "chdir"),
            Step::MakeCwd(path) => write!(f, "process.cwd: make {}", Text(path)),
            Step::Cwd { path, .. } => write!(f, "process.cwd: chdir to {}", Text(path)),
            Step::Scheduling(scheduling) => scheduling.fmt(f),
            Step::Label { file, label } => {
                write!(f, "process.selinuxLabel: write {label:?} to attr/{}", file.to_string_lossy())
            }
            Step::NoNewPrivileges => write!(f, "process.noNewPrivileges"),
            Step::Seccomp { .. } => write!(f, "linux.seccomp: load the filter"),
            Step::FindProgram => write!(f, "find the program"),
            Step::AwaitHooks { .. } => write!(f, "wait for the hooks"),
            Step::CloseOthers | Step::CloseForExec => write!(f, "close descriptors"),
            Step::AwaitStart => write!(f, "wait for the start"),
            Step::Exec => write!(f, "execve"),
            #[cfg(test)]
            Step::Failing(step) => step.fmt(f),
        }
    }
}

/// A path for people.
struct Text<'a>(&'a CString);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.to_string_lossy())
    }
}

struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => write!(f, "unlimited"),
        }
    }
}

/// What a program is called in errors.
pub(crate) struct Called {
    /// The field of the spec that names it.
    pub field: &'static str,
    pub name: String,
}

/// Everything the child runs: the steps, then the program.
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    /// What masked folders are hidden behind.
    pub mask: NewFilesystem,
    pub program: Program,
    pub called: Called,
    pub argv: CStringArray,
    pub envp: CStringArray,
}

impl Plan {
    /// Who is to get the listener of the plan's filter.
    pub fn agent(&self) -> Option<&Agent> {
        self.steps.iter().find_map(|step| match step {
            Step::Seccomp { agent, .. } => agent.as_deref(),
            _ => None,
        })
    }

    /// Tells [`Step::AwaitHooks`], if there is one, what is needed after it. To be called when the plan is whole.
    pub fn keep_through_hooks(&mut self) {
        let Some(at) = self.steps.iter().position(|step| matches!(step, Step::AwaitHooks { .. })) else { return };
        let (before, after) = self.steps.split_at_mut(at);
        let [Step::AwaitHooks { keep }, after @ ..] = after else { return };
        let rootfs = before.iter().filter(|step| matches!(step, Step::AttachRootfs { .. }));
        keep.extend(rootfs.chain(&*after).flat_map(Step::descriptors));
        if let Program::File { file, pass } = &self.program {
            keep.extend(pass.iter().chain([file]).map(AsRawFd::as_raw_fd));
        }
        keep.sort_unstable();
    }
}
