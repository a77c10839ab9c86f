//! A checked spec → a [`Plan`]: the order of everything that a new container's first process does to itself.
//!
//! Source: OCI runtime spec 1.3, runtime.md "Lifecycle", config.md, config-linux.md.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Process};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::thread::ThreadNameSpaceType;

use super::filesystem::NewFilesystem;
use super::mounts::{self, cstring};
use super::move_root;
use super::options::{Options, Recursive, propagation};
use super::resolve::Make;
use super::seccomp::Filter;
use super::step::{Called, Plan, Program, Step, Target};
use super::user;
use super::user_namespace::{IdMappings, Settle};
use crate::bundle::{Bundle, args, variable};
use crate::cgroup::Cgroup;
use crate::console::{self, Console};
use crate::error::{OrKind, Result, bail};
use crate::hooks::Hooks;
use crate::rootfs::{Rootfs, open_inside};
use crate::sys::{self, CStringArray, MountAttr};
use crate::{CreateOptions, Kind, Stdio};

/// What clone3(2) is to do.
pub(crate) struct Namespaces {
    /// CLONE_NEW* of the namespaces to make.
    pub flags: i32,
    /// The namespaces to be born in, of those that the spec names: the pid namespace, and with a user namespace all, as the
    /// child could not join the host's from in there.
    pub born_in: Vec<(OwnedFd, ThreadNameSpaceType)>,
    /// What is to be done for the child in its new user namespace, if it gets one.
    pub user: Option<Settle>,
}

/// What the payload is: the image's program, or our runner with what it needs.
pub(crate) enum Payload {
    /// `process.args`, looked up in the container's PATH.
    Spec,
    /// Another program, already open.
    Runner { file: OwnedFd, pass: Vec<OwnedFd>, argv: Vec<CString> },
    /// That of a hook.
    Hook { path: CString, argv: Vec<CString>, called: Called },
}

/// A compiled plan, and what its process takes that the plan itself does not hold.
pub(crate) struct Compiled {
    pub namespaces: Namespaces,
    pub plan: Plan,
    /// The terminal's side of the shim, where the process has a terminal.
    pub console: Option<Console>,
    /// The seccomp filter of the spec, for processes that join the container later.
    pub filter: Option<Filter>,
}

/// Compiles everything. The bundle's spec was checked when it was opened; what is found out here depends on the host.
pub(crate) fn compile(
    bundle: &Bundle,
    rootfs: Rootfs,
    cgroup: &Cgroup,
    stdio: Stdio,
    payload: Payload,
    options: &CreateOptions,
) -> Result<Compiled> {
    let process = bundle.process();
    let environment = environment(process, rootfs.tree());
    let mut steps = Vec::new();
    let mappings = IdMappings::of(bundle);
    steps.extend(join_cgroup(cgroup)?);
    if mappings.is_none() {
        // Else the parent does it.
        steps.extend(oom_score(process)?);
    }
    steps.push(Step::Session);
    let namespaces = namespaces(bundle, mappings.as_ref(), &mut steps)?;
    if !options.no_new_keyring {
        steps.push(keyring(bundle.id())?);
    }
    host_names(bundle, &mut steps)?;
    if bundle.namespace(LinuxNamespaceType::Cgroup) == Some(None) {
        // Its root is the cgroup that the process is in when it is made.
        steps.push(Step::Unshare(libc::CLONE_NEWCGROUP, "cgroup"));
    }
    steps.push(Step::Umask(0));
    let for_guest = matches!(payload, Payload::Runner { .. });
    if options.no_pivot_root {
        // Before the container has mounts, which this must not change.
        steps.push(move_root::isolate());
    }
    let (stdio, console) = file_systems(bundle, mappings.as_ref(), rootfs, cgroup, stdio, for_guest, &mut steps)?;
    user::rlimits(process, &mut steps);
    apparmor(process, &mut steps)?;
    // From here on the container's root is "/".
    steps.push(if options.no_pivot_root { move_root::step()? } else { Step::PivotRoot });
    if let Some((flags, recursive)) = rootfs_propagation(bundle)? {
        let recursive = if recursive == Recursive::Yes { libc::MS_REC } else { 0 };
        steps.push(Step::RootfsPropagation(flags | recursive));
    }
    let filter = bundle.linux().seccomp().as_ref().map(Filter::new).transpose()?.flatten();
    user::compile(process, mappings.is_some(), filter.as_ref(), stdio, &mut steps)?;
    let mut plan = program(process, payload, &environment, filter.as_ref(), Some(Step::AwaitStart), steps)?;
    plan.keep_through_hooks();
    Ok(Compiled { namespaces, plan, console, filter })
}

/// The end of a plan: `start`, if it has to be waited for, and the program.
pub(super) fn program(
    process: &Process,
    payload: Payload,
    environment: &[String],
    filter: Option<&Filter>,
    start: Option<Step>,
    mut steps: Vec<Step>,
) -> Result<Plan> {
    const FIELD: &str = "process.args";
    let (program, argv, called) = match payload {
        Payload::Spec => {
            let argv = args(process).iter().map(|arg| text(arg, FIELD)).collect::<Result<_>>()?;
            let name = args(process).first().cloned().unwrap_or_default();
            (Program::Paths(candidates(process, environment)?), argv, Called { field: FIELD, name })
        }
        Payload::Runner { file, pass, argv } => {
            let pass = pass.iter().map(user::above).collect::<Result<_>>()?;
            let called = Called { field: FIELD, name: "the WebAssembly runner".to_owned() };
            (Program::File { file: user::above(&file)?, pass }, argv, called)
        }
        Payload::Hook { path, argv, called } => (Program::Paths(vec![path]), argv, called),
    };
    if matches!(program, Program::Paths(_)) {
        steps.push(Step::FindProgram);
    }
    steps.extend(start);
    if process.no_new_privileges() == Some(true) {
        // As late as can be, so that the filter need not allow what came before.
        steps.extend(filter.map(Filter::step));
    }
    executing(program, argv, environment, called, steps)
}

/// A plan whose last step is to execute this program.
pub(super) fn executing(
    program: Program,
    argv: Vec<CString>,
    environment: &[String],
    called: Called,
    mut steps: Vec<Step>,
) -> Result<Plan> {
    steps.push(Step::Exec);
    let envp = environment.iter().map(|entry| text(entry, "env")).collect::<Result<_>>()?;
    let mask = Options::parse(&["mode=0755".to_owned(), "ro".to_owned()]).unwrap_or_default();
    let mask = NewFilesystem::new("tmpfs", "tmpfs", &mask).or_kind(Kind::Internal, || "mask")?;
    Ok(Plan { steps, mask, program, called, argv: CStringArray::new(argv), envp: CStringArray::new(envp) })
}

/// The cgroup, where the process is not born in it. To be joined while the host's file systems are still in sight.
pub(super) fn join_cgroup(cgroup: &Cgroup) -> Result<Option<Step>> {
    if cgroup.v2() { Ok(None) } else { Ok(Some(Step::JoinCgroups(cgroup.task_files()?))) }
}

/// The OOM score, where the spec names one. To be set while the host's /proc is still in sight.
pub(super) fn oom_score(process: &Process) -> Result<Option<Step>> {
    let score = process.oom_score_adj().map(|score| text(&score.to_string(), "process.oomScoreAdj")).transpose()?;
    Ok(score.map(Step::OomScore))
}

/// A session keyring by the name that runc gives it.
pub(super) fn keyring(id: &str) -> Result<Step> {
    Ok(Step::Keyring(CString::new(format!("_ses.{id}")).or_kind(Kind::InvalidArgument, || "id")?))
}

/// Namespaces to make become clone flags, those to join become steps.
fn namespaces(bundle: &Bundle, mappings: Option<&IdMappings>, steps: &mut Vec<Step>) -> Result<Namespaces> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    use ThreadNameSpaceType as T;
    let mut namespaces = Namespaces { flags: 0, born_in: Vec::new(), user: None };
    if let Some(mappings) = mappings {
        namespaces.flags |= libc::CLONE_NEWUSER;
        namespaces.user = Some(Settle::new(mappings.clone(), bundle.process()));
        steps.push(Step::AwaitMappings);
        // The folders down to it need not be open to the container's ids.
        if let Some(folder) = bundle.root().parent() {
            steps.push(Step::EnterFolder(cstring(folder)?));
        }
        steps.push(Step::BecomeRoot);
    }
    for (kind, name, flag) in [
        (Network, "network", T::NETWORK),
        (Ipc, "ipc", T::INTER_PROCESS_COMMUNICATION),
        (Uts, "uts", T::HOST_NAME_AND_NIS_DOMAIN_NAME),
        (Pid, "pid", T::PROCESS_ID),
        (Cgroup, "cgroup", T::CONTROL_GROUP),
        (Mount, "mount", T::MOUNT),
    ] {
        match (kind, bundle.namespace(kind)) {
            (_, None) => {}
            (_, Some(Some(path))) if kind == Pid || mappings.is_some() => {
                namespaces.born_in.push((open_namespace(path, name)?, flag));
            }
            (_, Some(Some(path))) => steps.push(Step::Join(open_namespace(path, name)?, name)),
            // Made once the process is in its cgroup.
            (Cgroup, Some(None)) => {}
            (Network, Some(None)) => {
                namespaces.flags |= libc::CLONE_NEWNET;
                steps.push(Step::LoopbackUp);
            }
            (Ipc, Some(None)) => namespaces.flags |= libc::CLONE_NEWIPC,
            (Uts, Some(None)) => namespaces.flags |= libc::CLONE_NEWUTS,
            (Pid, Some(None)) => namespaces.flags |= libc::CLONE_NEWPID,
            (Mount, Some(None)) => namespaces.flags |= libc::CLONE_NEWNS,
            // The one is above, the other was refused when the bundle was opened.
            (User | Time, _) => {}
        }
    }
    Ok(namespaces)
}

fn open_namespace(path: &Path, name: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::InvalidArgument, || format!("linux.namespaces: open the {name} namespace {}", path.display()))
}

fn host_names(bundle: &Bundle, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(name) = bundle.spec().hostname().as_deref().filter(|name| !name.is_empty()) {
        steps.push(Step::Hostname(text(name, "hostname")?));
    }
    if let Some(name) = bundle.spec().domainname().as_deref().filter(|name| !name.is_empty()) {
        steps.push(Step::Domainname(text(name, "domainname")?));
    }
    let Some(sysctls) = bundle.linux().sysctl().as_ref().filter(|sysctls| !sysctls.is_empty()) else { return Ok(()) };
    let proc_sys = rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::Internal, || "linux.sysctl: open /proc/sys")?;
    let proc_sys = Arc::new(proc_sys);
    for (key, value) in sysctls {
        // In a key with slashes dots are part of names, such as those of VLAN interfaces (sysctl(8)).
        let path = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
        steps.push(Step::Sysctl {
            proc_sys: Arc::clone(&proc_sys),
            path: text(&path, "linux.sysctl")?,
            value: text(value, "linux.sysctl")?,
        });
    }
    Ok(())
}

/// The rootfs, and all that is mounted, made, masked or made read-only in it.
///
/// A guest of the runner gets a copy of the tree with the kernel's own file systems read-only: with /proc/self/mem it could
/// else write to the runner's memory, and so leave WebAssembly's sandbox.
///
/// Returns the step that sets up stdio: a terminal is of the container's own devpts.
fn file_systems(
    bundle: &Bundle,
    mappings: Option<&IdMappings>,
    rootfs: Rootfs,
    cgroup: &Cgroup,
    stdio: Stdio,
    for_guest: bool,
    steps: &mut Vec<Step>,
) -> Result<(Step, Option<Console>)> {
    // The host must not get the container's mounts, but (as with runc) later mounts of the host reach the container.
    let slave = libc::MS_SLAVE;
    let base = match rootfs_propagation(bundle)? {
        None => slave,
        Some((flags, _)) if flags == libc::MS_UNBINDABLE => libc::MS_PRIVATE,
        // Binds stay in the host's peer groups.
        Some((flags, _)) if flags == libc::MS_SHARED => 0,
        Some((flags, _)) => flags,
    };
    // The old root goes away in the end, but pivot_root refuses while the new one's parent is shared.
    let root = if base == 0 { slave } else { base };
    steps.push(Step::RootPropagation(root | libc::MS_REC));
    let (tree, at) = rootfs.into_parts();
    // A copy of a shared mount (systemd makes all of a host's so) is its peer: what the container mounts in it would appear
    // on the host, and pivot_root refuses it.
    let attr = MountAttr { propagation: root, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), true, &attr).or_kind(Kind::Internal, || "propagation of the rootfs")?;
    // With a user namespace from the folder that was entered for it.
    let at = at.file_name().map(Path::new).filter(|_| mappings.is_some()).unwrap_or(&at);
    steps.push(Step::AttachRootfs { tree, at: cstring(at)? });
    mounts::compile(bundle, cgroup, base, steps)?;
    if !binds_dev(bundle) {
        devices(bundle, mappings.is_some(), steps)?;
    }
    if Hooks::see_create(bundle) {
        // As with runc they find everything writable that the container will find masked or read-only.
        steps.push(Step::AwaitHooks { keep: Vec::new() });
    }
    let stdio = match stdio {
        Stdio::Streams(streams) => (user::streams(bundle.process(), mappings, streams)?, None),
        Stdio::Terminal => terminal(bundle.process(), mappings, steps)?,
    };
    let linux = bundle.linux();
    for path in linux.masked_paths().iter().flatten() {
        steps.push(Step::Mask(text(path, "linux.maskedPaths")?));
    }
    for path in linux.readonly_paths().iter().flatten() {
        steps.push(Step::ReadonlyPath(text(path, "linux.readonlyPaths")?));
    }
    if bundle.spec().root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        steps.push(Step::ReadonlyRootfs);
    }
    if for_guest {
        let readonly = mounts::writable_of_the_kernel(bundle).map(cstring).collect::<Result<_>>()?;
        steps.push(Step::GuestRoot { readonly });
    }
    Ok(stdio)
}

/// Makes the terminal: in the container's devpts, whose mount is one of the steps, or where it has none of its own in the
/// host's.
fn terminal(
    process: &Process,
    mappings: Option<&IdMappings>,
    steps: &mut Vec<Step>,
) -> Result<(Step, Option<Console>)> {
    let is_new_devpts = |step: &Step| {
        matches!(step, Step::MountNew { filesystem, at }
            if filesystem.fstype.as_c_str() == c"devpts" && at.path.as_c_str() == c"/dev/pts")
    };
    if steps.iter().any(is_new_devpts) {
        // It is not there yet.
        steps.push(Step::OpenTerminal { size: console::size(process)? });
        return Ok((Step::Terminal { slave: None, uid: process.user().uid() }, None));
    }
    let devpts = steps.iter().rev().find_map(|step| match step {
        Step::Attach { tree, at } if at.path.as_c_str() == c"/dev/pts" => Some(tree.as_fd()),
        _ => None,
    });
    let (console, slave, mount) = match devpts {
        Some(devpts) => {
            let (console, slave) = Console::open(devpts)?;
            let mount = Step::Console(user::above(&slave)?);
            (console, slave, mount)
        }
        None => {
            let (console, slave) = Console::open_on_host()?;
            let tree = rustix::mount::open_tree(
                &slave,
                c"",
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
            );
            let tree = tree.or_kind(Kind::Internal, || "process.terminal: copy its mount")?;
            let at = Target { path: c"/dev/console".to_owned(), make: Make::File, no_symlinks: false };
            (console, slave, Step::Attach { tree, at })
        }
    };
    console.resize_to(process)?;
    steps.push(mount);
    Ok((user::terminal(process, mappings, &slave)?, Some(console)))
}

fn rootfs_propagation(bundle: &Bundle) -> Result<Option<(u64, Recursive)>> {
    match bundle.linux().rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => match propagation(word) {
            Some(propagation) => Ok(Some(propagation)),
            None => bail!(InvalidArgument, "linux.rootfsPropagation: {word:?} is not a propagation"),
        },
    }
}

/// Whether the host's /dev is the container's, so that nothing may be made in it.
fn binds_dev(bundle: &Bundle) -> bool {
    bundle.spec().mounts().iter().flatten().any(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.destination() == Path::new("/dev") && options.iter().any(|option| option == "bind" || option == "rbind")
    })
}

/// Device nodes: those that the spec supplies by default, then its own; and the usual symlinks (config-linux.md,
/// "Default Devices"; runtime-linux.md "Dev symbolic links").
///
/// In a user namespace device nodes can't be made and would not be ones: the host's are mounted (user_namespaces(7)).
fn devices(bundle: &Bundle, mapped: bool, steps: &mut Vec<Step>) -> Result<()> {
    const DEFAULT: [(&str, u32, u32); 6] = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ];
    let own = bundle.linux().devices().as_deref().unwrap_or_default();
    for (path, major, minor) in DEFAULT {
        if own.iter().any(|device| device.path() == Path::new(path)) {
            continue;
        }
        let node = Step::Device {
            path: text(path, "linux.devices")?,
            mode: libc::S_IFCHR | 0o666,
            device: rustix::fs::makedev(major, minor),
            uid: 0,
            gid: 0,
        };
        steps.push(if mapped { of_the_host(node)? } else { node });
    }
    for device in own {
        let node = node(device)?;
        steps.push(if mapped { of_the_host(node)? } else { node });
    }
    const LINKS: [(&str, &str); 5] = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    for (target, at) in LINKS {
        steps.push(Step::Symlink { target: text(target, "/dev")?, at: text(at, "/dev")? });
    }
    Ok(())
}

fn node(device: &LinuxDevice) -> Result<Step> {
    let what = || format!("linux.devices: {}", device.path().display());
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => bail!(InvalidArgument, "{}: type \"a\" is not a kind of file", what()),
    };
    let number = |number: i64| u32::try_from(number).or_kind(Kind::InvalidArgument, what);
    Ok(Step::Device {
        path: cstring(device.path())?,
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        device: rustix::fs::makedev(number(device.major())?, number(device.minor())?),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The host's node of the same path in place of one to make, with the host's owner and mode. A fifo is made as ever.
fn of_the_host(node: Step) -> Result<Step> {
    let Step::Device { path, mode, device, .. } = &node else { return Ok(node) };
    let kind = FileType::from_raw_mode(*mode);
    if kind == FileType::Fifo {
        return Ok(node);
    }
    let what = || format!("linux.devices: {}: open the host's", path.to_string_lossy());
    let file =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_kind(Kind::InvalidArgument, what)?;
    let stat = rustix::fs::fstat(&file).or_kind(Kind::Internal, what)?;
    if (FileType::from_raw_mode(stat.st_mode), stat.st_rdev) != (kind, *device) {
        bail!(
            Unimplemented,
            "linux.devices: {}: on the host it is another file, and in a user namespace none can be made",
            path.to_string_lossy()
        );
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&file, c"", flags).or_kind(Kind::Internal, what)?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), false, &private).or_kind(Kind::Internal, what)?;
    Ok(Step::Attach { tree, at: Target { path: path.clone(), make: Make::File, no_symlinks: false } })
}

/// To be run while the host's /proc is in sight: that of the container may be anything.
pub(super) fn apparmor(process: &Process, steps: &mut Vec<Step>) -> Result<()> {
    let Some(profile) = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty()) else {
        return Ok(());
    };
    let enabled =
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if !enabled {
        bail!(FailedPrecondition, "process.apparmorProfile: {profile}: this host has no AppArmor");
    }
    steps.push(Step::AppArmor(text(&format!("exec {profile}"), "process.apparmorProfile")?));
    Ok(())
}

/// The spec's environment. HOME is added from /etc/passwd below `root` where the spec has none, as runc and crun do.
pub(crate) fn environment(process: &Process, root: BorrowedFd<'_>) -> Vec<String> {
    let mut environment = process.env().clone().unwrap_or_default();
    if variable(process, "HOME").is_none() {
        let home = home(root, process.user().uid()).unwrap_or_else(|| "/".to_owned());
        environment.push(format!("HOME={home}"));
    }
    environment
}

/// The home folder of a user in /etc/passwd below `root` (passwd(5)).
fn home(root: BorrowedFd<'_>, uid: u32) -> Option<String> {
    use std::io::Read;
    /// As much of the file as is read: an image could hold anything.
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    open_inside(root, Path::new("/etc/passwd")).ok()?.take(MAX).read_to_string(&mut text).ok()?;
    let mut users = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2).is_some_and(|id| *id == uid.to_string()))?;
    user.get(5).filter(|home| !home.is_empty() && !home.contains('\0')).map(|home| (*home).to_owned())
}

/// Where `args[0]` may be: itself if it has a slash, else in each folder of the container's PATH (execvp(3)).
fn candidates(process: &Process, environment: &[String]) -> Result<Vec<CString>> {
    let Some(program) = args(process).first() else { bail!(InvalidArgument, "process.args: empty") };
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    search(program, path).iter().map(|path| text(path, "process.args")).collect()
}

/// The paths to try for a program, in order. An unset PATH is the usual default; relative folders in it are skipped, as a
/// program found by the current folder is a known trap.
pub(crate) fn search(program: &str, path: Option<&str>) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| format!("{}/{program}", folder.trim_end_matches('/')))
        .collect()
}

pub(super) fn text(value: &str, field: &'static str) -> Result<CString> {
    CString::new(value).or_kind(Kind::InvalidArgument, || format!("{field}: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_path() {
        assert_eq!(search("/bin/a", Some("/x")), ["/bin/a"]);
        assert_eq!(search("./a", Some("/x")), ["./a"]);
        assert_eq!(search("a", Some("/x:.:/y/:")), ["/x/a", "/y/a"]);
        assert_eq!(search("a", None).len(), 6);
    }
}
