//! Each step of a plan is made to fail in its turn: the error says which it was and why, and nothing is left behind. On the
//! kernel, as root.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::step::{Plan, Step};
use crate::container::create_with;
use crate::image::NoImages;
use crate::{Bundle, Container, CreateOptions, ExecSpec, Result, Stdio, Streams};

/// The one error that no step gives by itself.
const WHY: &str = "state not recoverable";

/// A container of the host's own programs that uses what a plan has steps for.
fn config(cgroup: &str) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({"type": kind}));
    let bind = |path: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]});
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [5], "umask": 0o27},
            "args": ["/bin/sleep", "1000"],
            "env": ["PATH=/bin"],
            "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
            "oomScoreAdj": 100,
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "a",
        "domainname": "b",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["private"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            bind("/bin"), bind("/lib"), bind("/lib64"), bind("/usr"),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "rootfsPropagation": "rprivate",
            "maskedPaths": ["/proc/keys", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO"}],
            },
        },
    })
}

/// What this process and the host have more of while a container is there.
fn state(bundle: &Path) -> BTreeSet<String> {
    let names = |folder: &Path| fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let mut state: BTreeSet<String> = names(bundle).map(|path| path.display().to_string()).collect();
    for thread in names(Path::new("/proc/self/task")) {
        let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
        state.extend(children.split_whitespace().map(|pid| format!("child {pid}")));
    }
    state.extend(fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(|line| format!("mount {line}")));
    for path in names(Path::new("/proc/self/fd")) {
        // That of the listing itself is gone.
        state.extend(fs::read_link(&path).ok().map(|target| format!("{} {}", path.display(), target.display())));
    }
    let own = format!("hybrid-failures-{}", std::process::id());
    for hierarchy in names(Path::new("/sys/fs/cgroup")) {
        for path in [hierarchy.join(&own), Path::new("/sys/fs/cgroup").join(&own)] {
            state.extend(path.exists().then(|| format!("cgroup {}", path.display())));
        }
    }
    state
}

/// `KINDS`, the names of all steps that there are, and `kind`, that of one: a new step that is not among them does not compile.
macro_rules! kinds {
    ($($kind:ident)*) => {
        const KINDS: &[&str] = &[$(stringify!($kind)),*];

        fn kind(step: &Step) -> &'static str {
            match step {
                $(Step::$kind { .. } => stringify!($kind),)*
                Step::Failing(step) => kind(step),
            }
        }
    };
}

kinds! {
    JoinCgroups OomScore Session AwaitParent EnterFolder BecomeRoot DieWithParent Join JoinContainer Unshare TimeOffsets
    Keyring LoopbackUp Hostname Domainname Sysctl RootPropagation AttachRootfs Attach AttachNew Bind SetAttr MountNew
    MountLike Remount Device Symlink Mask ReadonlyPath ReadonlyMount ReadonlyRootfs AwaitHooks GuestRoot
    GuestRootOfContainer PivotRoot MoveRoot ChangeRoot RootfsPropagation Stdio Terminal Console OpenTerminal Rlimit AppArmor
    BoundingSet KeepCapabilities Groups Ids Capabilities CapabilitySets Umask MakeCwd Cwd Scheduling Label CwdOf
    NoNewPrivileges Seccomp FindProgram CloseOthers CloseForExec AwaitStart Exec
}

/// Those that no plan here has, and why.
const ELSEWHERE: [(&str, &str); 7] = [
    ("AppArmor", "takes a host with AppArmor: e2e apparmor::"),
    ("Label", "takes a host with SELinux"),
    ("DieWithParent", "of a hook's plan: e2e hooks_life::"),
    ("CwdOf", "of a hook's plan: e2e hooks_life::"),
    ("TimeOffsets", "of the process between: e2e namespaces::clocks_that_cannot_be"),
    ("GuestRoot", "of a WebAssembly container: e2e wasm::"),
    ("GuestRootOfContainer", "of a WebAssembly container: e2e wasm::"),
];

fn fail(plan: &mut Plan, at: usize) {
    let step = std::mem::replace(&mut plan.steps[at], Step::Exec);
    plan.steps[at] = Step::Failing(Box::new(step));
}

/// What an error about a step says of it: for the program's, the program.
fn words(step: &Step) -> String {
    match step {
        Step::FindProgram => "process.args: \"/bin/".to_owned(),
        Step::Exec => "exec \"/bin/".to_owned(),
        step => format!("{step}: "),
    }
}

fn streams() -> Stdio {
    Stdio::Streams(Streams::default())
}

/// A container as it is described, with a bundle of its own.
struct Rig {
    bundle: tempfile::TempDir,
    terminal: bool,
    options: CreateOptions,
}

impl Rig {
    fn new(terminal: bool, no_pivot_root: bool, change: impl FnOnce(&mut Value)) -> Rig {
        let mut config = config(&format!("/hybrid-failures-{}/a", std::process::id()));
        change(&mut config);
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        Rig { bundle, terminal, options: CreateOptions { no_pivot_root, ..CreateOptions::default() } }
    }

    fn create(&self, look: impl FnOnce(&mut Plan)) -> Result<Container> {
        let stdio = if self.terminal { Stdio::Terminal } else { streams() };
        create_with(&NoImages, Bundle::open("a", self.bundle.path())?, &[], stdio, &self.options, look)
    }

    /// The kind of each step and the words for it, and how many there are until the start.
    fn plan(&self) -> (Vec<(&'static str, String)>, usize) {
        let (mut all, mut start) = (Vec::new(), 0);
        let look = |plan: &mut Plan| {
            all = plan.steps.iter().map(|step| (kind(step), words(step))).collect();
            start = plan.steps.iter().position(|step| matches!(step, Step::AwaitStart)).unwrap();
        };
        let container = self.create(look).unwrap();
        container.init().start().unwrap();
        container.delete().unwrap();
        (all, start)
    }

    /// Every step of the first process. Returns their kinds.
    fn create_fails(&self) -> Vec<&'static str> {
        let (all, start) = self.plan();
        let before = state(self.bundle.path());
        for (at, (_, words)) in all.iter().enumerate() {
            let error = match self.create(|plan| fail(plan, at)) {
                Err(error) => {
                    assert!(at <= start, "{words}: too early: {error}");
                    error
                }
                Ok(container) => {
                    assert!(at > start, "{words}: created");
                    let error = container.init().start().unwrap_err();
                    container.delete().unwrap();
                    error
                }
            };
            let text = error.to_string();
            assert!(text.contains(words.as_str()) && text.contains(WHY), "step {at}: {text:?} lacks {words:?}");
            assert_eq!(state(self.bundle.path()), before, "after {words}");
        }
        all.into_iter().map(|(kind, _)| kind).collect()
    }

    /// Every step of a further process, while the container runs on. Returns their kinds.
    fn exec_fails(&self) -> Vec<&'static str> {
        let container = self.create(|_| ()).unwrap();
        container.init().start().unwrap();
        let spec = json!({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true});
        let spec = ExecSpec::parse(spec.to_string().as_bytes()).unwrap();
        let stdio = || if self.terminal { Stdio::Terminal } else { streams() };
        let mut all = Vec::new();
        let look = |plan: &mut Plan| all = plan.steps.iter().map(|step| (kind(step), words(step))).collect();
        drop(container.exec_with(&spec, stdio(), look).unwrap());
        let before = state(self.bundle.path());
        for (at, (_, words)) in all.iter().enumerate() {
            let text = container.exec_with(&spec, stdio(), |plan| fail(plan, at)).err().unwrap().to_string();
            assert!(text.contains(words.as_str()) && text.contains(WHY), "step {at}: {text:?} lacks {words:?}");
            assert_eq!(state(self.bundle.path()), before, "after {words}");
        }
        assert_eq!(container.init().reap().unwrap(), None, "the container has ended");
        container.delete().unwrap();
        all.into_iter().map(|(kind, _)| kind).collect()
    }
}

/// In a process of its own, whose children and descriptors are nobody else's.
#[test]
fn every_step_fails_and_leaves_nothing() {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "--include-ignored", "--nocapture", "native::failures::alone"]);
    let output =
        crate::process::output(alone.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()));
    let output = output.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

#[test]
#[ignore = "run by the one above"]
fn alone() {
    let user_namespace = |config: &mut Value| {
        let linux = &mut config["linux"];
        linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for list in ["uidMappings", "gidMappings"] {
            linux[list] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        }
        config["root"]["readonly"] = json!(true);
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/true"}]});
        let devpts = json!({"destination": "/dev/pts", "type": "bind", "source": "/dev/pts", "options": ["bind"]});
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.iter_mut().filter(|mount| mount["type"] == "devpts").for_each(|mount| *mount = devpts.clone());
    };
    let joined = |config: &mut Value| {
        config["process"]["noNewPrivileges"] = json!(false);
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "ipc" {
                namespace["path"] = json!("/proc/self/ns/ipc");
            }
        }
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "mqueue");
    };
    let on_host = |config: &mut Value| {
        let linux = config["linux"].as_object_mut().unwrap();
        linux["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "mount");
        for needs_mounts in ["rootfsPropagation", "maskedPaths", "readonlyPaths"] {
            linux.remove(needs_mounts);
        }
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/tmp", "type": "none", "source": "none", "options": ["remount", "nosuid"]}));
    };
    let mut failed = BTreeSet::new();
    for rig in [
        Rig::new(false, false, |_| ()),
        Rig::new(true, false, user_namespace),
        Rig::new(true, true, joined),
        Rig::new(false, false, on_host),
    ] {
        failed.extend(rig.create_fails());
        failed.extend(rig.exec_fails());
    }
    if cgroup_v2() {
        failed.insert("JoinCgroups");
    }
    let elsewhere = ELSEWHERE.map(|(kind, _)| kind);
    let left: Vec<_> = KINDS.iter().filter(|kind| failed.contains(**kind) == elsewhere.contains(kind)).collect();
    assert!(left.is_empty(), "not made to fail, or made to fail and named as one that is not: {left:?}");
}

fn cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
