//! An image whose every entry leads out of it (`test_images::CANARY`), and whose program tries all ways: nothing outside
//! changes, whatever of the container is made and by whichever executor. That a container is refused is as well.
use crate::cve::{attempt, bind, spec, without};
use crate::harness::fifos::Fifos;
use crate::harness::host::{Canary, Volume};
use crate::harness::spec::Spec;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", |test| {
        let canary = Canary::of_the_hostile_image()?;
        let output =
            test.run_image("hostile", &["/bin/probe", "storm", &canary.file().display().to_string()]).done()?;
        calm(&output.stdout)?;
        canary.unharmed()
    }),
    Case::new("its_own_file_systems", |test| all(test, |_| Ok(()))).kinds(BOTH),
    Case::new("its_own_file_systems_and_a_user_namespace", |test| all(test, mapped)).kinds(BOTH),
    Case::new("mount_targets", |test| targets(test, |_| Ok(()))).kinds(BOTH),
    Case::new("mount_targets_in_a_user_namespace", |test| targets(test, mapped)).kinds(BOTH),
    Case::new("current_folders", current_folders).kinds(BOTH),
    Case::new("an_exec", |test| exec(test, |_| Ok(()))).kinds(BOTH),
    Case::new("an_exec_in_a_user_namespace", |test| exec(test, mapped)).kinds(BOTH),
];

/// The image has a program and a module.
const BOTH: &[Kind] = &[Kind::Linux, Kind::Core];

type Change = fn(&mut Spec) -> Result<()>;

/// Nothing but its last word has come from the storm: every way was closed.
fn calm(stdout: &str) -> Result<()> {
    let hits: Vec<&str> = stdout.lines().filter(|line| !["done", "no /proc"].contains(line)).collect();
    ensure!(hits.is_empty() && !stdout.is_empty(), "out of the container: {hits:?}");
    Ok(())
}

/// A user namespace in which root is the host's: no file is protected by its owner alone.
fn mapped(spec: &mut Spec) -> Result<()> {
    let linux = &mut spec.value["linux"];
    linux["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
    let same = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    linux["uidMappings"] = same.clone();
    linux["gidMappings"] = same;
    Ok(())
}

/// A copy of the image, for containers may add to it.
fn image(test: &Test) -> Result<Volume> {
    Volume::rootfs(test.containerd, "hostile")
}

/// What the container executes: a storm; of a guest, one write through a link.
fn arguments(test: &Test, canary: &Canary) -> [String; 3] {
    let file = canary.file().display().to_string();
    match test.kind {
        Kind::Linux => ["storm".to_owned(), file, String::new()],
        _ => ["write".to_owned(), "/dev/console".to_owned(), "written".to_owned()],
    }
}

/// A container of the image with these arguments, run to its end if it is not refused.
fn run(
    test: &Test,
    id: &str,
    root: &Volume,
    terminal: bool,
    change: impl FnOnce(&mut Spec) -> Result<()>,
) -> Result<()> {
    let canary = Canary::of_the_hostile_image()?;
    let arguments = arguments(test, &canary);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let mut spec = spec(test, id, &arguments)?.set("/root/path", json!(root.path()))?;
    spec = spec.set("/process/oomScoreAdj", json!(100))?.set("/process/terminal", json!(terminal))?;
    change(&mut spec)?;
    let io = Fifos::new(test.containerd)?;
    let name = |request: &mut containerd_shim_protos::api::CreateTaskRequest| {
        request.terminal = terminal;
        io.name(request);
    };
    attempt(test, id, &spec, name, |server, _| {
        server.wait().context("Wait")?;
        let text = io.stdout.to_end().map(|_| io.stdout.text())?;
        if test.kind == Kind::Linux { calm(&text.replace('\r', "")) } else { Ok(()) }
    })?;
    canary.unharmed().with_context(|| spec.value.to_string())
}

/// With the image's own /dev, /proc and /sys in place of the kernel's, and with and without a terminal.
fn all(test: &Test, change: Change) -> Result<()> {
    let root = image(test)?;
    let folders: [&[&str]; 6] =
        [&[], &["/dev"], &["/dev/pts"], &["/proc"], &["/sys"], &["/dev", "/proc", "/sys", "/run"]];
    for (number, folders) in folders.into_iter().enumerate() {
        for terminal in [false, true] {
            let id = test.other(&format!("{number}{terminal}"));
            run(test, &id, &root, terminal, |spec| {
                change(spec)?;
                without(spec, folders)
            })?;
        }
    }
    // Mounts onto what is a link in the image's own /dev.
    let mounts = |spec: &mut Spec| {
        change(spec)?;
        spec.value["mounts"].as_array_mut().context("mounts")?.retain(|mount| mount["destination"] != "/dev");
        Ok(())
    };
    run(test, &test.other("mounts"), &root, true, mounts)
}

fn targets(test: &Test, change: Change) -> Result<()> {
    let (root, source) = (image(test)?, Volume::new(test.containerd)?);
    source.file("file", "from the host")?;
    let file = source.path().join("file");
    let names = ["absolute", "descriptor", "loop", "process", "slash", "up"].map(|name| format!("/target-{name}"));
    let others = ["/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/root", "/dev/console", "/sys/firmware"];
    for (number, at) in names.iter().map(String::as_str).chain(others).enumerate() {
        let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["ro"]});
        let deeper = format!("{at}/made/deeper");
        let mounts: [Value; 5] =
            [bind(source.path(), at), bind(&file, at), bind(&file, &deeper), tmpfs(at), tmpfs(&deeper)];
        for (which, mount) in mounts.into_iter().enumerate() {
            run(test, &test.other(&format!("{number}x{which}")), &root, false, |spec| {
                change(spec)?;
                spec.value["linux"]["maskedPaths"] = json!([at, "/proc/keys", "/etc/passwd", "/etc/hosts"]);
                spec.value["linux"]["readonlyPaths"] =
                    json!(["/proc/sys", deeper, "/etc/resolv.conf", "/sys/firmware"]);
                spec.value["linux"]["devices"] = json!([{"path": deeper, "type": "c", "major": 1, "minor": 5}]);
                spec.value["mounts"].as_array_mut().context("mounts")?.push(mount);
                Ok(())
            })?;
        }
    }
    Ok(())
}

const CURRENT: [&str; 7] = ["/cwd", "/cwd-outside", "/cwd-root", "/proc/self/fd/8", "/root", "/target-loop", "/dev/fd"];

fn current_folders(test: &Test) -> Result<()> {
    let root = image(test)?;
    for (number, folder) in CURRENT.into_iter().enumerate() {
        for (name, change) in [("own", (|_| Ok(())) as Change), ("mapped", mapped)] {
            let id = test.other(&format!("{number}{name}"));
            run(test, &id, &root, number % 2 == 0, |spec| {
                change(spec)?;
                spec.value["process"]["cwd"] = json!(folder);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// By a further process; each link is written to as well, which a guest's own resolution keeps inside.
fn exec(test: &Test, change: Change) -> Result<()> {
    let (canary, root) = (Canary::of_the_hostile_image()?, image(test)?);
    let mut spec = test.spec(&["pause"])?.set("/root/path", json!(root.path()))?;
    change(&mut spec)?;
    let task = test.task_of(spec)?;
    let file = canary.file().display().to_string();
    let mut number = 0;
    let mut one = |arguments: &[&str], cwd: &str, terminal: bool| -> Result<String> {
        number += 1;
        let mut exec = task.exec(&format!("one{number}"), arguments)?.set("/cwd", json!(cwd))?;
        if terminal {
            exec = exec.terminal();
        }
        exec.add().context("Exec")?;
        let output = match exec.start() {
            Err(_) => String::new(),
            Ok(_) => {
                exec.wait().context("Wait")?;
                exec.io()?.stdout.to_end().context("its output")?;
                exec.io()?.stdout.text()
            }
        };
        exec.delete().context("Delete")?;
        Ok(output)
    };
    let links = [
        "/etc/passwd",
        "/etc/resolv.conf",
        "/root/file",
        "/target-up/../file",
        "/target-process/../file",
        "/cwd-root/run/hybrid-canary/file",
        "/srv/../../../../run/hybrid-canary/file",
        "/dev/fd/run/hybrid-canary/file",
    ];
    for link in links {
        one(&["write", link, "written"], "/", false)?;
    }
    for (cwd, terminal) in CURRENT.into_iter().chain(["/"]).flat_map(|cwd| [(cwd, false), (cwd, true)]) {
        if test.kind == Kind::Linux {
            let text = one(&["storm", &file], cwd, terminal)?;
            if !text.is_empty() {
                calm(&text.replace('\r', "")).with_context(|| format!("in {cwd}"))?;
            }
        } else {
            one(
                &["write", Path::new("../../../..").join(&file[1..]).to_str().unwrap_or_default(), "w"],
                cwd,
                terminal,
            )?;
        }
    }
    canary.unharmed()?;
    task.end()
}
