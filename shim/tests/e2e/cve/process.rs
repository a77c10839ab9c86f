//! Faults of processes: what one that is about to execute its program still has of the host's.
use super::{attacker, attempt, rootfs, spec, without};
use crate::harness::direct::Direct;
use crate::harness::host::{Canary, Volume};
use crate::harness::task::Task;
use crate::harness::{Kind, Runtime, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// Default capabilities, and the one that lets a process look into others whatever they are.
fn may_trace(process: &mut Value) {
    for set in ["bounding", "effective", "permitted"] {
        if let Some(set) = process["capabilities"][set].as_array_mut() {
            set.push(json!("CAP_SYS_PTRACE"));
        }
    }
}

/// A container of the test's kind that was created and not started, in the pid namespace of an attacker; `look` gets the
/// attacker and init's pid there.
fn beside_a_created_init(
    test: &Test,
    change: impl FnOnce(&mut Value),
    look: impl FnOnce(&Task, &str) -> Result<()>,
) -> Result<()> {
    let spy = attacker(test, &["pause"], |spec| change(&mut spec["process"]))?;
    let mut spec = test.spec(&["pause"])?;
    for namespace in spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{}/ns/pid", spy.pid));
        }
    }
    let created = test.created(spec, |_| ())?;
    let status = fs::read_to_string(format!("/proc/{}/status", created.pid)).context("reading its status")?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("NSpid")?;
    look(&spy, pids.split_whitespace().last().context("its pid in there")?)?;
    created.delete().context("Delete")?;
    created.remove()?;
    spy.end()
}

/// What `probe peek` printed: a word for the outcome of each look.
fn outcomes(stdout: &str) -> BTreeMap<&str, &str> {
    stdout.lines().filter_map(|line| line.split_once(' ')).collect()
}

/// A copy of the shim waits in sight of another container with the same user and capabilities.
pub fn memory_of_the_shim(test: &Test) -> Result<()> {
    beside_a_created_init(
        test,
        |_| (),
        |spy, pid| {
            let seen = spy.exec("peek", &["peek", pid])?.run()?.exits(0)?;
            let outcomes = outcomes(&seen.stdout);
            ensure!(outcomes.len() == 8, "{seen}");
            ensure!(outcomes.values().all(|outcome| *outcome == "Permission denied"), "{seen}");
            // Of itself it sees all of it.
            let own = spy.exec("own", &["peek", "self"])?.run()?.exits(0)?;
            ensure!(own.lines().contains(&"mem ok") && own.lines().contains(&"exe ok"), "{own}");
            Ok(())
        },
    )
}

/// One that is allowed to look finds a program that it can't change.
pub fn program_of_a_created_init(test: &Test) -> Result<()> {
    beside_a_created_init(test, may_trace, |spy, pid| {
        let seen = spy.exec("peek", &["peek", pid])?.run()?.exits(0)?;
        unwritable(test, outcomes(&seen.stdout).get("write-exe").with_context(|| seen.to_string())?)
    })
}

/// What the kernel says of writing to the runtime's own program. On a read-only mount it never can be; that the file is busy
/// would only hold as long as somebody executes it.
fn unwritable(test: &Test, outcome: &str) -> Result<()> {
    let good: &[&str] = match test.runtime() {
        Runtime::Hybrid => &["Read-only file system"],
        Runtime::Runc => &["Read-only file system", "Operation not permitted", "Text file busy", "Permission denied"],
    };
    ensure!(good.contains(&outcome), "opening the program for writing: {outcome}");
    Ok(())
}

/// A malicious image has the runtime execute itself, by a link or as an interpreter, and waits for it.
pub fn own_program(test: &Test) -> Result<()> {
    let binary = test.containerd.shim(test.runtime());
    let before = fs::read(&binary).context("reading the shim")?;
    let root = Volume::rootfs(test.containerd, if test.kind == Kind::Linux { "linux" } else { "mixed" })?;
    root.link("entry", "/proc/self/exe")?;
    root.file("script", "#!/proc/self/exe\n")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.path().join("script"), executable).context("chmod")?;
    let mut spec = test.spec(&["pause"])?.set("/root/path", json!(root.path()))?;
    may_trace(&mut spec.value["process"]);
    let task = test.task_of(spec)?;
    let mut hunter = task.exec_program("hunt", &["/bin/probe", "hunt"])?;
    hunter.spawn()?;
    hunter.io()?.stdout.wait_for("ready")?;
    for number in 0..10 {
        for program in ["/entry", "/script", "/proc/self/exe"] {
            let name = format!("{}{number}", program.replace('/', "-"));
            let exec = task.exec_program(&name, &[program, "-namespace", "n", "-id", "i", "no-action"])?.null_io();
            exec.add().context("Exec")?;
            // Refused is as well.
            if exec.start().is_ok() {
                exec.wait().context("Wait")?;
            }
            exec.delete().context("Delete")?;
        }
    }
    hunter.end_stdin()?;
    let found = hunter.finish()?.exits(0)?;
    let caught: Vec<&str> = found.stdout.lines().filter(|line| line.starts_with("exe ")).collect();
    ensure!(test.runtime() == Runtime::Runc || !caught.is_empty(), "nothing was caught: {found}");
    for line in caught {
        let (program, outcome) = line.rsplit_once(": ").context("an outcome")?;
        unwritable(test, outcome).with_context(|| program.to_owned())?;
    }
    ensure!(fs::read(&binary).context("reading the shim")? == before, "the shim's binary has changed");
    task.end()
}

/// The processes of many execs, from their birth in the container's pid namespace on.
pub fn an_exec_is_hunted(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let mut hunter = task.exec("hunt", &["hunt"])?;
    hunter.spawn()?;
    hunter.io()?.stdout.wait_for("ready")?;
    for number in 0..30 {
        task.exec(&format!("one{number}"), &["hello"])?.null_io().run()?.exits(0)?;
    }
    hunter.end_stdin()?;
    let found = hunter.finish()?.exits(0)?;
    ensure!(found.stdout == "ready\n", "another program than the probe was seen: {found}");
    task.end()
}

/// The sets of capabilities are the spec's: none is inheritable or ambient that it does not name.
pub fn inheritable(test: &Test) -> Result<()> {
    let sets = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
    let task = test.task_of(test.spec(&["pause"])?.set("/process/capabilities", sets)?)?;
    let none = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a status")?;
        for set in ["CapInh", "CapAmb"] {
            ensure!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        Ok(())
    };
    none(task.pid)?;
    let more = json!({"bounding": ["CAP_NET_ADMIN"], "effective": ["CAP_NET_ADMIN"], "permitted": ["CAP_NET_ADMIN"]});
    for (number, sets) in [Value::Null, more].into_iter().enumerate() {
        let mut exec = task.exec(&format!("one{number}"), &["wait-stdin"])?;
        if !sets.is_null() {
            exec = exec.set("/capabilities", sets)?;
        }
        let pid = exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        none(pid)?;
        exec.end_stdin()?;
        exec.finish()?.exits(0)?;
    }
    task.end()
}

/// The names of a descriptor that a child may have, and what it may be reached by.
fn descriptors() -> impl Iterator<Item = String> {
    (3..48).flat_map(|fd| [format!("/proc/self/fd/{fd}"), format!("/link-to-self/fd/{fd}/..")])
}

/// A root file system with a link that leads to the process's own folder in /proc.
fn with_link(test: &Test) -> Result<Volume> {
    let root = rootfs(test)?;
    root.link("link-to-self", "/proc/self")?;
    root.link("link-to-root", "/proc/self/root")?;
    Ok(root)
}

/// No descriptor of the host's becomes the current folder.
pub fn cwd_of_init(test: &Test) -> Result<()> {
    let (canary, root) = (Canary::new(test.containerd)?, with_link(test)?);
    for (number, cwd) in descriptors().step_by(2).enumerate() {
        let id = test.other(&number.to_string());
        let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
        // For which the child has a folder of the host's open.
        let spec = spec.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "777"}))?;
        let spec = spec.set("/process/cwd", json!(cwd))?;
        let error = attempt(test, &id, &spec, |_| (), |_, _| Ok(()))?;
        let error = error.with_context(|| format!("{cwd} was entered"))?;
        ensure!(test.runtime() == Runtime::Runc || error.contains("process.cwd"), "{error}");
    }
    canary.unharmed()
}

pub fn cwd_of_an_exec(test: &Test) -> Result<()> {
    let (canary, root) = (Canary::new(test.containerd)?, with_link(test)?);
    let task = test.task_of(test.spec(&["pause"])?.set("/root/path", json!(root.path()))?)?;
    for (number, cwd) in descriptors().chain(["/proc/self/exe/..".to_owned()]).enumerate() {
        let exec = task.exec(&format!("one{number}"), &["pwd"])?.set("/cwd", json!(cwd))?.null_io();
        exec.add().context("Exec")?;
        ensure!(exec.start().is_err(), "{cwd} was entered");
        exec.delete().context("Delete")?;
    }
    task.end()?;
    canary.unharmed()
}

/// What a descriptor of the shim's is of is not executed.
pub fn program_by_a_descriptor(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    for fd in 3..48 {
        let exec = task.exec_program(&format!("one{fd}"), &[&format!("/proc/self/fd/{fd}")])?.null_io();
        exec.add().context("Exec")?;
        ensure!(exec.start().is_err(), "descriptor {fd} was executed");
        exec.delete().context("Delete")?;
    }
    let output = task.exec("fds", &["fds"])?.run()?.exits(0)?;
    ensure!(output.lines().len() == 3, "{output}");
    task.end()
}

/// The container's /proc is a folder of the image's, with links to the canary in place of the files that a runtime writes
/// to: what the spec asks for is written to the kernel's, and to nothing else.
pub fn proc_of_the_image(test: &Test) -> Result<()> {
    const SYSCTL: &str = "net/ipv4/ip_unprivileged_port_start";
    let (canary, root) = (Canary::new(test.containerd)?, rootfs(test)?);
    let faked = [
        "self/oom_score_adj",
        "self/attr/exec",
        "self/attr/apparmor/exec",
        "self/uid_map",
        "self/gid_map",
        "self/setgroups",
        &format!("sys/{SYSCTL}"),
    ];
    for name in faked {
        root.link(&format!("proc/{name}"), canary.file())?;
    }
    root.link("proc/thread-self", "self")?;
    let id = test.other("one");
    let mut spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
    without(&mut spec, &["/proc"])?;
    spec = spec.set("/linux/sysctl", json!({SYSCTL.replace('/', "."): "777"}))?;
    spec = spec.set("/process/oomScoreAdj", json!(567))?;
    let direct = Direct::new(test.containerd, test.runtime(), &id)?;
    let task = Task::create(test.containerd, test.kind, direct, spec, |_| ())?;
    task.start().context("Start")?;
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).context("reading a score");
    ensure!(score(task.pid)? == "567\n", "the score of init is {}", score(task.pid)?);
    let mut inside = Command::new("nsenter");
    inside.args(["--net", "--target", &task.pid.to_string(), "cat", &format!("/proc/sys/{SYSCTL}")]);
    let value = inside.output().context("running nsenter")?.stdout;
    ensure!(value == b"777\n", "the sysctl is {:?}", String::from_utf8_lossy(&value));
    let mut exec = task.exec("exec", &["wait-stdin"])?.set("/oomScoreAdj", json!(678))?;
    let pid = exec.spawn()?;
    exec.io()?.stdout.wait_for("ready")?;
    ensure!(score(pid)? == "678\n", "the score of the exec is {}", score(pid)?);
    exec.end_stdin()?;
    exec.finish()?.exits(0)?;
    task.end()?;
    canary.unharmed()
}

/// Something is mounted in the procfs that the shim itself has, as where it runs in somebody's container.
pub fn proc_of_the_shim(test: &Test) -> Result<()> {
    // One file for all namespaces, where those of the network and of ipc have each their own.
    const SYSCTL: &str = "kernel/domainname";
    let (canary, fake) = (Canary::new(test.containerd)?, Volume::new(test.containerd)?);
    fake.link(SYSCTL, canary.file())?;
    let covers = [(canary.file(), format!("/proc/sys/{SYSCTL}")), (fake.path().to_owned(), "/proc/sys".to_owned())];
    for (number, (source, at)) in covers.iter().enumerate() {
        let id = test.other(&number.to_string());
        let spec = spec(test, &id, &["pause"])?.set("/linux/sysctl", json!({SYSCTL.replace('/', "."): "written"}))?;
        let direct = Direct::new(test.containerd, test.runtime(), &id)?.config(&spec)?;
        let server = direct.started_with(|start| {
            let mut covered = Command::new("unshare");
            covered.args(["--mount", "sh", "-ec", "mount --bind \"$0\" \"$1\"; shift; exec \"$@\""]);
            covered.arg(source).arg(at).arg(start.get_program()).args(start.get_args());
            covered.envs(start.get_envs().filter_map(|(name, value)| Some((name, value?))));
            covered.current_dir(&direct.bundle).env_remove("MAX_SHIM_VERSION");
            *start = covered;
        })?;
        let error = server.create().err().with_context(|| format!("{at} was written to"))?.to_string();
        ensure!(error.contains("linux.sysctl"), "{at}: {error}");
        server.shutdown()?;
        direct.remove()?;
        canary.unharmed()?;
    }
    Ok(())
}
