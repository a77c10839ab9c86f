//! Faults of mounts: targets, masks and the console that a symbolic link, or a swap for one, leads elsewhere.
use super::{TRIES, attacker, attempt, bind, rootfs, spec, without};
use crate::harness::fifos::Fifos;
use crate::harness::host::{Canary, Volume};
use crate::harness::spec::Spec;
use crate::harness::{Runtime, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::types::mount::Mount;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is mounted at a target.
pub const FOLDER: &str = "marker";
pub const FILE: &str = "marker/file";

/// The names that lead to the canary in whichever way a link can.
fn ways_to(path: &Path) -> [PathBuf; 3] {
    let climbing = Path::new("../../../../../../../..").join(path.strip_prefix("/").unwrap_or(path));
    [path.to_owned(), climbing, Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path))]
}

/// A path inside the root of a process, as the host sees it. Nothing of it is followed.
fn inside(pid: u32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(path.trim_start_matches('/'))
}

/// Refused by runc too; from hybrid the path is wanted.
fn refused(test: &Test, error: Option<String>, word: &str) -> Result<()> {
    let error = error.with_context(|| format!("{word}: not refused"))?;
    ensure!(test.runtime() == Runtime::Runc || error.contains(word), "{error} does not say {word}");
    Ok(())
}

/// Mounts over /proc, or in it, by their own path or by a symbolic link of the image's.
pub fn on_proc(test: &Test) -> Result<()> {
    let volume = Volume::new(test.containerd)?;
    let root = rootfs(test)?;
    root.link("to-proc", "/proc")?;
    root.link("to-sys", "proc/sys")?;
    let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": []});
    let by_name = ["/proc", "/proc/self/attr", "/proc/sys/kernel", "/x/../proc/sys"].map(|at| (at, "/proc"));
    let by_link = ["/to-proc", "/to-proc/self", "/to-sys"].map(|at| (at, at));
    for (number, (at, word)) in by_name.into_iter().chain(by_link).enumerate() {
        for (kind, mount) in [("bind", bind(volume.path(), at)), ("tmpfs", tmpfs(at))] {
            let id = test.other(&format!("{kind}{number}"));
            let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?.mount(mount)?;
            let error = attempt(test, &id, &spec, |_| (), |_, _| Ok(()))?;
            refused(test, error, word).with_context(|| format!("{kind} at {at}"))?;
        }
    }
    Ok(())
}

/// A volume, at `/volume`, in which a second container swaps a folder for a link that leads to the canary.
fn swapping<'a>(test: &Test<'a>, volume: &Volume, name: &str, link: &Path) -> Result<crate::harness::task::Task<'a>> {
    volume.link("link", link)?;
    attacker(test, &["swap", &format!("/volume/{name}"), "/volume/link"], |spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(bind(volume.path(), "/volume"));
        }
    })
}

/// A volume with what is to be mounted, to be found again.
fn marker(test: &Test) -> Result<Volume> {
    let source = Volume::new(test.containerd)?;
    source.file("marker/file", "marker")?;
    Ok(source)
}

/// The name in the canary's folder of what the same can be mounted on.
fn found_outside(what: &str) -> &'static str {
    if what == FOLDER { "folder" } else { "file" }
}

/// A process sees as many mounts of the marker: one that was attached outside went with the host's.
fn mounted_inside(pid: u32, source: &Volume, count: usize) -> Result<()> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("reading its mountinfo")?;
    let name = source.path().file_name().and_then(|name| name.to_str()).context("a name")?;
    let of_the_marker =
        |line: &&str| line.split(' ').nth(3).is_some_and(|root| root.contains(&format!("{name}/{FOLDER}")));
    let found = mounts.lines().filter(of_the_marker).count();
    ensure!(found == count, "{found} mounts instead of {count}:\n{mounts}");
    Ok(())
}

/// Mounts whose targets lie in a volume are made and mounted while it changes.
pub fn swapped_target(test: &Test, what: &str) -> Result<()> {
    let (canary, source) = (Canary::new(test.containerd)?, marker(test)?);
    for (round, way) in ways_to(canary.folder()).into_iter().enumerate() {
        let volume = Volume::new(test.containerd)?;
        volume.folder("target")?;
        let attacker = swapping(test, &volume, "target", &way)?;
        for number in 0..TRIES {
            let id = test.other(&format!("{round}x{number}"));
            let spec = spec(test, &id, &["pause"])?.mount(bind(volume.path(), "/volume"))?;
            let spec = spec.mount(bind(&source.path().join(what), &format!("/volume/target/{number}/deeper")))?;
            let spec =
                spec.mount(bind(&source.path().join(what), &format!("/volume/target/{}", found_outside(what))))?;
            // Refused or done inside.
            attempt(test, &id, &spec, |_| (), |_, pid| mounted_inside(pid, &source, 2))?;
            canary.unharmed()?;
        }
        attacker.end()?;
    }
    Ok(())
}

/// The same without a race: the target is a link from the beginning.
pub fn linked_target(test: &Test, what: &str) -> Result<()> {
    let (canary, source, root) = (Canary::new(test.containerd)?, marker(test)?, rootfs(test)?);
    for (number, way) in ways_to(canary.folder()).into_iter().enumerate() {
        root.link("link", &way)?;
        let id = test.other(&number.to_string());
        let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
        let spec = spec.mount(bind(&source.path().join(what), "/link/made/deeper"))?;
        let spec = spec.mount(bind(&source.path().join(what), &format!("/link/{}", found_outside(what))))?;
        attempt(test, &id, &spec, |_| (), |_, pid| mounted_inside(pid, &source, 2))?;
        canary.unharmed()?;
    }
    Ok(())
}

/// procfs is mounted nowhere else than where masks and labels expect it.
pub fn proc_is_a_symlink(test: &Test) -> Result<()> {
    is_a_symlink(test, "proc")
}

pub fn sys_is_a_symlink(test: &Test) -> Result<()> {
    is_a_symlink(test, "sys")
}

fn is_a_symlink(test: &Test, name: &str) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    let root = rootfs(test)?;
    root.folder("data/proc")?;
    let outside = canary.folder().join("folder");
    for (number, target) in ["/data/proc", "data/proc", "/", "..", name, "/proc/self/fd/3"]
        .into_iter()
        .map(Path::new)
        .chain([outside.as_path()])
        .enumerate()
    {
        root.link(name, target)?;
        let id = test.other(&number.to_string());
        let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
        refused(test, attempt(test, &id, &spec, |_| (), |_, _| Ok(()))?, &format!("/{name}"))?;
        canary.unharmed()?;
    }
    // In the words that validation suites look for.
    let words = "must be mounted on ordinary directory";
    root.link(name, "nowhere")?;
    let id = test.other("words");
    let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
    refused(test, attempt(test, &id, &spec, |_| (), |_, _| Ok(()))?, words)
}

/// The container's root is a volume in which another one swaps /proc. Either there is a procfs at /proc, or it is refused.
pub fn proc_is_swapped(test: &Test) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    let root = rootfs(test)?;
    root.folder("data/proc")?;
    let attacker = swapping(test, &root, "proc", Path::new("data/proc"))?;
    for number in 0..TRIES {
        let id = test.other(&number.to_string());
        let spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
        attempt(
            test,
            &id,
            &spec,
            |_| (),
            |_, pid| {
                let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("reading its mountinfo")?;
                let at = |path: &str| mounts.lines().any(|line| line.split(' ').nth(4) == Some(path));
                // What it was called is what it is called now, a moment later.
                ensure!(at("/proc") || at("/link"), "no procfs:\n{mounts}");
                ensure!(!mounts.lines().any(|line| line.contains(" /data/proc ")), "procfs elsewhere:\n{mounts}");
                Ok(())
            },
        )?;
        canary.unharmed()?;
    }
    attacker.end()
}

/// Whether a path in the container is a device of these numbers.
fn device(pid: u32, path: &str) -> Result<Option<(u32, u32)>> {
    let meta = match fs::symlink_metadata(inside(pid, path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        meta => meta.with_context(|| format!("looking at its {path}"))?,
    };
    let number = meta.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Ok(meta.file_type().is_char_device().then_some((major, minor)))
}

/// A spec whose /dev is the image's own, and two masked files.
fn own_dev<'a>(test: &Test<'a>, id: &str, root: &Volume) -> Result<Spec<'a>> {
    root.file("etc/secret", "secret")?;
    let mut spec = spec(test, id, &["pause"])?.set("/root/path", json!(root.path()))?;
    without(&mut spec, &["/dev"])?;
    spec.set("/linux/maskedPaths", json!(["/etc/secret", "/proc/keys"]))
}

fn masked(pid: u32) -> Result<()> {
    for path in ["/etc/secret", "/proc/keys"] {
        let found = device(pid, path)?;
        ensure!(found == Some((1, 3)), "{path} is not behind /dev/null but {found:?}");
    }
    Ok(())
}

/// Masks are the host's /dev/null, whatever the image has there.
pub fn null_is_a_symlink(test: &Test) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    let root = rootfs(test)?;
    for (number, target) in ["/proc/sys/kernel/core_pattern", "/etc/passwd", "null"]
        .into_iter()
        .map(Path::new)
        .chain([canary.file().as_path()])
        .enumerate()
    {
        root.link("dev/null", target)?;
        let id = test.other(&number.to_string());
        let spec = own_dev(test, &id, &root)?;
        let error = attempt(test, &id, &spec, |_| (), |_, pid| masked(pid))?;
        // runc looks for one in the container, and refuses.
        ensure!(error.is_none() || test.runtime() == Runtime::Runc, "{error:?}");
        canary.unharmed()?;
    }
    Ok(())
}

pub fn null_is_swapped(test: &Test) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    let (volume, root) = (Volume::new(test.containerd)?, rootfs(test)?);
    volume.file("null", "")?;
    let attacker = swapping(test, &volume, "null", Path::new("/proc/sys/kernel/core_pattern"))?;
    for number in 0..TRIES {
        let id = test.other(&number.to_string());
        let spec = own_dev(test, &id, &root)?.mount(bind(volume.path(), "/dev"))?;
        let error = attempt(test, &id, &spec, |_| (), |_, pid| masked(pid))?;
        ensure!(error.is_none() || test.runtime() == Runtime::Runc, "{error:?}");
        canary.unharmed()?;
    }
    attacker.end()
}

/// A task with a terminal from this spec: refused, or with the terminal at its own /dev/console.
fn with_terminal(test: &Test, id: &str, spec: Spec) -> Result<()> {
    let io = Fifos::new(test.containerd)?;
    let spec = spec.set("/process/terminal", json!(true))?;
    let change = |request: &mut containerd_shim_protos::api::CreateTaskRequest| {
        request.terminal = true;
        io.name(request);
    };
    attempt(test, id, &spec, change, |_, pid| {
        for path in ["/etc/passwd", "/proc/keys", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
            let found = device(pid, path)?;
            ensure!(found.is_none_or(|(major, _)| major != 136), "the terminal is at {path}");
        }
        // Under the other name where the two are swapped, which may happen between one look and the next.
        let is_at = |path: &str| device(pid, path).is_ok_and(|found| found.is_some_and(|(major, _)| major == 136));
        let found = (0..1000).any(|_| is_at("/dev/console") || is_at("/dev/link"));
        ensure!(found, "the terminal is at no console");
        Ok(())
    })?;
    Ok(())
}

const TO_CONSOLE: [&str; 4] = ["/etc/passwd", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "console"];

pub fn console_is_a_symlink(test: &Test) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    let root = rootfs(test)?;
    for (number, target) in TO_CONSOLE.into_iter().map(Path::new).chain([canary.file().as_path()]).enumerate() {
        for (name, devpts) in [("dev/console", true), ("dev/console", false), ("dev/pts/0", false), ("dev/ptmx", false)]
        {
            root.folder("dev/pts")?;
            root.link(name, target)?;
            let id = test.other(&format!("{number}{}{devpts}", name.replace('/', "-")));
            let mut spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
            without(&mut spec, if devpts { &["/dev/shm", "/dev/mqueue"] } else { &["/dev"] })?;
            if devpts {
                // The image's /dev, and a devpts in it.
                let mounts = spec.value["mounts"].as_array_mut().context("mounts")?;
                mounts.retain(|mount| mount["destination"] != "/dev");
            }
            with_terminal(test, &id, spec)?;
            canary.unharmed()?;
            fs::remove_file(root.path().join(name)).context("removing the link")?;
        }
    }
    Ok(())
}

pub fn console_is_swapped(test: &Test) -> Result<()> {
    let canary = Canary::new(test.containerd)?;
    for (round, target) in
        ["/proc/sysrq-trigger", "/etc/passwd"].into_iter().map(Path::new).chain([canary.file().as_path()]).enumerate()
    {
        let (volume, root) = (Volume::new(test.containerd)?, rootfs(test)?);
        volume.file("console", "")?;
        let attacker = swapping(test, &volume, "console", target)?;
        for number in 0..TRIES {
            let id = test.other(&format!("{round}x{number}"));
            let mut spec = spec(test, &id, &["pause"])?.set("/root/path", json!(root.path()))?;
            without(&mut spec, &["/dev"])?;
            with_terminal(test, &id, spec.mount(bind(volume.path(), "/dev"))?)?;
            canary.unharmed()?;
        }
        attacker.end()?;
    }
    Ok(())
}

/// Of the mounts that containerd asks for as rootfs, a later one's target may be in the image.
pub fn target_in_the_rootfs(test: &Test) -> Result<()> {
    let (canary, source, root) = (Canary::new(test.containerd)?, marker(test)?, rootfs(test)?);
    root.folder(&canary.folder().display().to_string()[1..])?;
    for (number, way) in ways_to(canary.folder()).into_iter().enumerate() {
        root.link("link", &way)?;
        let id = test.other(&number.to_string());
        let mut spec = spec(test, &id, &["pause"])?;
        let mount = |source: &Path, target: &str| Mount {
            type_: "bind".to_owned(),
            source: source.display().to_string(),
            target: target.to_owned(),
            options: vec!["rbind".to_owned()],
            ..Default::default()
        };
        let mounts = vec![mount(root.path(), ""), mount(&source.path().join(FOLDER), "link")];
        // Where the way leads.
        without(&mut spec, &["/run"])?;
        spec = spec.set("/root/path", json!("rootfs"))?;
        let change = |request: &mut containerd_shim_protos::api::CreateTaskRequest| {
            fs::create_dir(Path::new(&request.bundle).join("rootfs")).unwrap_or_default();
            request.rootfs = mounts;
        };
        attempt(test, &id, &spec, change, |_, pid| {
            let file = inside(pid, &canary.folder().join("file").display().to_string());
            ensure!(fs::read_to_string(&file).is_ok_and(|text| text == "marker"), "not mounted inside: {file:?}");
            Ok(())
        })?;
        canary.unharmed()?;
    }
    Ok(())
}
