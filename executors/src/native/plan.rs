//! A checked spec → a [`Plan`]: the order of everything that a new container's first process does to itself.
//!
//! Source: OCI runtime spec 1.3, runtime.md "Lifecycle", config.md, config-linux.md.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Process};

use super::devices::{binds_dev, devices};
use super::environment::{candidates, environment};
use super::filesystem::NewFilesystem;
use super::mounts::{self, cstring};
use super::move_root;
use super::namespaces::{Namespaces, host_names, namespaces};
use super::options::{Options, Recursive, propagation};
use super::scheduling;
use super::seccomp::Filter;
use super::selinux;
use super::step::{Called, Plan, Program, Step};
use super::terminal::terminal;
use super::user;
use super::user_namespace::IdMappings;
use crate::bundle::{Bundle, args};
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::{OrKind, Result, bail};
use crate::hooks::Hooks;
use crate::resctrl::Resctrl;
use crate::rootfs::{OnHost, Rootfs};
use crate::sys::{self, CStringArray, MountAttr};
use crate::{CreateOptions, Kind, Stdio};

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
    /// The container's ids, where it has a user namespace.
    pub mappings: Option<IdMappings>,
    /// The rootfs, where the container has no mount namespace.
    pub on_host: Option<OnHost>,
}

/// Compiles everything. The bundle's spec was checked when it was opened; what is found out here depends on the host.
pub(crate) fn compile(
    bundle: &Bundle,
    rootfs: Rootfs,
    cgroup: &Cgroup,
    stdio: Stdio,
    payload: Payload,
    resctrl: Option<&Resctrl>,
    options: &CreateOptions,
) -> Result<Compiled> {
    let process = bundle.process();
    let for_guest = matches!(payload, Payload::Runner { .. });
    let environment = environment(process, rootfs.tree(), for_guest);
    let mut steps = Vec::new();
    let mappings = IdMappings::of(bundle)?;
    steps.extend(join_cgroup(cgroup, resctrl)?);
    steps.push(scheduling::all_cpus());
    if mappings.is_none() {
        // Else the parent does it.
        steps.extend(oom_score(process)?);
    }
    steps.push(Step::Session);
    let namespaces = namespaces(bundle, mappings.as_ref(), &mut steps)?;
    if !options.no_new_keyring {
        steps.extend(selinux::of_keyring(process)?);
        steps.push(keyring(bundle.id())?);
    }
    host_names(bundle, &mut steps)?;
    if bundle.namespace(LinuxNamespaceType::Cgroup) == Some(None) {
        // Its root is the cgroup that the process is in when it is made.
        steps.push(Step::Unshare(libc::CLONE_NEWCGROUP, "cgroup"));
    }
    steps.push(Step::Umask(0));
    let own_mounts = bundle.namespace(LinuxNamespaceType::Mount).is_some();
    let on_host = if own_mounts { None } else { Some(OnHost::new(&rootfs, bundle)?) };
    if for_guest && !own_mounts {
        bail!(Unimplemented, "linux.namespaces: a WebAssembly container needs a mount namespace");
    }
    if options.no_pivot_root && own_mounts {
        // Before the container has mounts, which this must not change.
        steps.push(move_root::isolate());
    }
    let (stdio, console) = file_systems(bundle, mappings.as_ref(), rootfs, cgroup, stdio, for_guest, &mut steps)?;
    apparmor(process, &mut steps)?;
    steps.extend(selinux::of_program(process)?);
    // From here on the container's root is "/".
    steps.push(match () {
        // The host's mounts are its own: nothing of them may be moved or detached.
        () if !own_mounts => Step::ChangeRoot(None),
        () if options.no_pivot_root => move_root::step()?,
        () => Step::PivotRoot,
    });
    if let Some((flags, recursive)) = rootfs_propagation(bundle)? {
        let recursive = if recursive == Recursive::Yes { libc::MS_REC } else { 0 };
        steps.push(Step::RootfsPropagation(flags | recursive));
    }
    steps.extend(scheduling::of_process(process)?);
    steps.extend(scheduling::of_container(bundle.linux())?.steps());
    let filter = Filter::of(bundle)?;
    let filtered = user::compile(process, mappings.is_some(), filter.as_ref(), stdio, &mut steps)?;
    let loading = filter.as_ref().map(|filter| (filter, filtered));
    let mut plan = program(process, payload, &environment, loading, Some(Step::AwaitStart), steps)?;
    plan.keep_through_hooks();
    if let Some(label) = selinux::of_mounts(bundle.linux())? {
        let options = Options { data: vec![label], ..Options::default() };
        let labelled =
            NewFilesystem::new("tmpfs", "tmpfs", &options).or_kind(Kind::InvalidArgument, || "linux.mountLabel")?;
        plan.mask.parameters.extend(labelled.parameters);
    }
    Ok(Compiled { namespaces, plan, console, filter, mappings, on_host })
}

/// As much of a plan as is decided without looking at the host: no mount is made, and there is no file to start from.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn compile_without_host(bundle: &Bundle) -> Result<Plan> {
    let process = bundle.process();
    let mapped = bundle.namespace(LinuxNamespaceType::User).is_some();
    let mut steps = vec![keyring(bundle.id())?];
    steps.extend(oom_score(process)?);
    host_names(bundle, &mut steps)?;
    rootfs_propagation(bundle)?;
    mounts::decide(bundle)?;
    // In a user namespace the host's are looked at.
    devices(bundle, false, &mut steps)?;
    for path in bundle.linux().masked_paths().iter().flatten() {
        steps.push(Step::Mask(text(path, "linux.maskedPaths")?));
    }
    for path in bundle.linux().readonly_paths().iter().flatten() {
        steps.push(Step::ReadonlyPath(text(path, "linux.readonlyPaths")?));
    }
    crate::console::size(process)?;
    steps.extend(scheduling::of_process(process)?);
    steps.extend(scheduling::of_container(bundle.linux())?.steps());
    let filter = bundle.linux().seccomp().as_ref().map(Filter::without_agent).transpose()?;
    let filtered = user::compile(process, mapped, filter.as_ref(), Step::Session, &mut steps)?;
    let environment = process.env().clone().unwrap_or_default();
    let loading = filter.as_ref().map(|filter| (filter, filtered));
    program(process, Payload::Spec, &environment, loading, Some(Step::AwaitStart), steps)
}

/// The end of a plan: `start`, if it has to be waited for, and the program. With a filter comes what `user::compile` has
/// left for after it.
pub(super) fn program(
    process: &Process,
    payload: Payload,
    environment: &[String],
    loading: Option<(&Filter, Option<Step>)>,
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
    if start.is_some() {
        steps.push(Step::CloseOthers);
    }
    // As late as can be, so that the filter need not allow what came before: but a created process has no capability that is
    // for loading it, and the agent is told at create, as runc does it.
    let Some((filter, filtered)) = loading else {
        steps.extend(start);
        return executing(program, argv, environment, called, steps);
    };
    let before_start = filter.notifies() || process.no_new_privileges() != Some(true);
    let load = [Step::CloseForExec, filter.step()].into_iter().chain(filtered);
    if before_start {
        steps.extend(load.chain(start));
    } else {
        steps.extend(start.into_iter().chain(load));
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
    let mask = Options::parse(&["mode=0755", "ro"]);
    let mask = NewFilesystem::new("tmpfs", "tmpfs", &mask).or_kind(Kind::Internal, || "mask")?;
    Ok(Plan { steps, mask, program, called, argv: CStringArray::new(argv), envp: CStringArray::new(envp) })
}

/// The cgroup, where the process is not born in it, and the group of resctrl. To be joined while the host's file systems are
/// still in sight.
pub(super) fn join_cgroup(cgroup: &Cgroup, resctrl: Option<&Resctrl>) -> Result<Option<Step>> {
    let mut files = cgroup.task_files()?;
    files.extend(resctrl.map(Resctrl::task_files).transpose()?.unwrap_or_default());
    Ok((!files.is_empty()).then_some(Step::JoinCgroups(files)))
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
    let own_mounts = bundle.namespace(LinuxNamespaceType::Mount).is_some();
    if own_mounts {
        steps.push(Step::RootPropagation(root | libc::MS_REC));
    }
    let (tree, at) = rootfs.into_parts();
    // A copy of a shared mount (systemd makes all of a host's so) is its peer: what the container mounts in it would appear
    // on the host, and pivot_root refuses it.
    let attr = MountAttr { propagation: root, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), true, &attr).or_kind(Kind::Internal, || "propagation of the rootfs")?;
    // With a user namespace from the folder that was entered for it.
    let at = at.file_name().map(Path::new).filter(|_| mappings.is_some()).unwrap_or(&at);
    steps.push(Step::AttachRootfs { tree, at: cstring(at)? });
    if !own_mounts {
        // What is attached to a shared mount becomes shared (mount_namespaces(7)).
        let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        steps.push(Step::SetAttr { attr, recursive: true });
    }
    let last = mounts::compile(bundle, mappings, cgroup, base, steps)?;
    if !binds_dev(bundle) {
        devices(bundle, mappings.is_some(), steps)?;
    }
    if Hooks::see_create(bundle) {
        // As with runc they find everything writable that the container will find masked or read-only.
        steps.push(Step::AwaitHooks { keep: Vec::new() });
    }
    if bundle.process().cwd() != Path::new("/") {
        steps.push(Step::MakeCwd(cstring(bundle.process().cwd())?));
    }
    let stdio = match stdio {
        Stdio::Streams(streams) => (user::streams(bundle.process(), mappings, streams)?, None),
        Stdio::Terminal => terminal(bundle.process(), mappings, steps)?,
    };
    // Devices and the terminal are in /dev, which may be among them.
    steps.extend(last);
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

fn rootfs_propagation(bundle: &Bundle) -> Result<Option<(u64, Recursive)>> {
    match bundle.linux().rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => match propagation(word) {
            Some(propagation) => Ok(Some(propagation)),
            None => bail!(InvalidArgument, "linux.rootfsPropagation: {word:?} is not a propagation"),
        },
    }
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

pub(super) fn text(value: &str, field: &'static str) -> Result<CString> {
    CString::new(value).or_kind(Kind::InvalidArgument, || format!("{field}: {value:?}"))
}
