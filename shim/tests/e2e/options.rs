//! The runtime options: from `ctr`, which sends the path of a file, and in each field of a Create request.
use crate::harness::direct::{Direct, Server, refused};
use crate::harness::leaks::Process;
use crate::harness::{Case, NAMESPACE, Test};
use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, CreateTaskResponse};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::shim::oci::Options;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("file", |test| {
        let file = config_file(test, "NoNewKeyring = true\nNoPivotRoot = true\nRoot = \"/run/somewhere\"\n")?;
        let output = test.run(&["hello"]).flags(&["--runtime-config-path", &file]).done()?;
        ensure!(output.stdout.starts_with("hello from"), "{output}");
        Ok(())
    })
    .all()
    .hybrid_only(), // ctr sends runc's shim other options
    Case::new("file_with_an_unknown_key", |test| {
        let file = config_file(test, "IoUid = 0\nColour = \"blue\"\n")?;
        refused_by_ctr(test, &file, &[&file, "Colour"])
    })
    .hybrid_only(),
    Case::new("file_with_a_wrong_type", |test| {
        let file = config_file(test, "NoPivotRoot = \"yes\"\n")?;
        refused_by_ctr(test, &file, &[&file, "NoPivotRoot", "string", "boolean"])
    })
    .hybrid_only(),
    Case::new("file_that_is_no_toml", |test| {
        let file = config_file(test, "IoUid = 0\n<xml/>\n")?;
        refused_by_ctr(test, &file, &[&file, "line 2"])
    })
    .hybrid_only(),
    Case::new("file_missing", |test| refused_by_ctr(test, "/no/such/options.toml", &["/no/such/options.toml"]))
        .hybrid_only(),
    Case::new("fields_refused_by_name", refused_fields).hybrid_only(), // runc's are runc's
    Case::new("types_refused_by_name", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        for name in ["containerd.linux.runc.RuncOptions", "example.v1.Options"] {
            let any = Any { type_url: name.to_owned(), ..Default::default() };
            let created = server.create_as(|request| request.options = MessageField::some(any));
            let words = refused(created, Code::UNIMPLEMENTED)?;
            ensure!(words.contains(name) && words.contains(&test.id), "{words}");
        }
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(),
    Case::new("owner_of_the_streams", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        create(&server, Options { io_uid: 1234, io_gid: 2345, ..Default::default() })?;
        let stdout = fs::metadata(direct.bundle.join("stdout")).context("looking at stdout")?;
        ensure!((stdout.uid(), stdout.gid()) == (1234, 2345), "owned by {}:{}", stdout.uid(), stdout.gid());
        finish(&server, 0)?;
        direct.remove()
    })
    .all()
    .hybrid_only(), // runc's shim gives pipes away, not files
    Case::new("no_new_keyring", |test| {
        let ring = format!("_ses.{}", test.id);
        // In this order: the kernel takes its time to forget a keyring.
        let inherited = keys(test, Options { no_new_keyring: true, ..Default::default() })?;
        ensure!(!inherited.contains(&ring), "a session keyring of its own:\n{inherited}");
        let own = keys(test, Options::new())?;
        ensure!(own.contains(&ring), "no session keyring of its own without the option:\n{own}");
        Ok(())
    }),
    Case::new("no_pivot_root", |test| {
        let host = fs::metadata("/").context("looking at /")?.dev();
        let host = format!("{}:{}\n", rustix::fs::major(host), rustix::fs::minor(host));
        let pivoted = beneath(test, Options::new())?;
        ensure!(pivoted != host, "without the option the host's root is below: {pivoted}");
        let moved = beneath(test, Options { no_pivot_root: true, ..Default::default() })?;
        ensure!(moved == host, "with the option {moved} is below, not {host}");
        Ok(())
    }),
    Case::new("no_pivot_root_hides_the_host", |test| {
        // Were the host's procfs still somewhere in its mount namespace, a container could have one without masks.
        let spec = test.spec(&["try", "procfs"])?.set("/linux/maskedPaths", json!(["/proc/kcore"]))?;
        let direct = test.direct()?.config(&spec)?;
        let server = direct.start()?;
        create(&server, Options { no_pivot_root: true, ..Default::default() })?;
        finish(&server, 0)?;
        let stdout = server.stdout()?;
        ensure!(stdout == "Operation not permitted\n", "{stdout}");
        direct.remove()
    }),
    Case::new("shim_cgroup", |test| {
        let cgroups = Cgroups::make(&format!("{NAMESPACE}-shims/{}", test.id))?;
        let options = Options { shim_cgroup: format!("/{}", cgroups.path), ..Default::default() };
        let direct = test.direct()?.config(&test.spec(&["spin"])?)?;
        let started = direct.start_with(|_| (), &any(&options)?.write_to_bytes()?)?.exits(0)?;
        let server = direct.connect(started.stdout.trim(), 2)?;
        lives_in(&server, &cgroups)?;
        // But its containers don't.
        let init = create(&server, options)?.pid;
        let init = fs::read_to_string(format!("/proc/{init}/cgroup")).context("reading init's cgroups")?;
        ensure!(!init.contains(&cgroups.path), "init is in the shim's cgroup:\n{init}");
        server.kill(9).and_then(|_| server.wait()).and_then(|_| server.delete()).map_err(|error| anyhow!("{error}"))?;
        end(server)?;
        cgroups.remove()?;
        direct.remove()
    })
    .hybrid_only(), // runc's shim moves itself while it already runs, and fails on hierarchies that lack the cgroup
    Case::new("shim_cgroup_by_bootstrap_parameters", |test| {
        let cgroups = Cgroups::make(&format!("{NAMESPACE}-shims/{}", test.id))?;
        let file = config_file(test, &format!("ShimCgroup = \"/{}\"\n", cgroups.path))?;
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let output = crate::harness::command::raw_output(&mut direct.command("start"), &bootstrap(&direct, &file)?)?;
        let result = BootstrapResult::parse_from_bytes(&output).context("decoding the answer")?;
        let server = direct.connect(&result.address, 3)?;
        lives_in(&server, &cgroups)?;
        end(server)?;
        cgroups.remove()?;
        direct.remove()
    })
    .hybrid_only(),
    Case::new("shim_cgroup_missing", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let options = Options { shim_cgroup: "/no/such/cgroup".to_owned(), ..Default::default() };
        let output = direct.start_with(|_| (), &any(&options)?.write_to_bytes()?)?;
        output.refused(&["ShimCgroup", "/no/such/cgroup", &test.id])?;
        direct.remove()
    })
    .hybrid_only(),
    Case::new("start_refuses_what_is_neither", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        direct.start_with(|_| (), b"\xff\xff")?.refused(&["stdin"])?;
        direct.remove()
    })
    .hybrid_only(),
];

pub fn config_file(test: &Test, text: &str) -> Result<String> {
    let path = test.containerd.fresh_path("options");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.display().to_string())
}

fn refused_by_ctr(test: &Test, file: &str, words: &[&str]) -> Result<()> {
    let output = test.run(&["hello"]).flags(&["--runtime-config-path", file]).output()?.refused(words)?;
    ensure!(output.stderr.contains(&test.id), "{output}");
    Ok(())
}

fn any(options: &Options) -> Result<Any> {
    let value = options.write_to_bytes().context("encoding the options")?;
    Ok(Any { type_url: "containerd.runc.v1.Options".to_owned(), value, ..Default::default() })
}

fn try_create(server: &Server, options: &Options) -> Result<ttrpc::Result<CreateTaskResponse>> {
    let any = any(options)?;
    Ok(server.create_as(|request| request.options = MessageField::some(any)))
}

fn create(server: &Server, options: Options) -> Result<CreateTaskResponse> {
    try_create(server, &options)?.map_err(|error| anyhow!("Create: {error}"))
}

/// Starts the task and ends it and the shim.
fn finish(server: &Server, status: u32) -> Result<()> {
    let rpc = |error: ttrpc::Error| anyhow!("{error}");
    server.start().map_err(rpc)?;
    let ended = server.wait().map_err(rpc)?.exit_status;
    server.delete().map_err(rpc)?;
    server.shutdown()?;
    // runc's shim makes the file only when something is written.
    let stderr = fs::read_to_string(server.bundle().join("stderr")).unwrap_or_default();
    ensure!(ended == status, "exit status {ended}: {stderr}");
    Ok(())
}

fn refused_fields(test: &Test) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
    let server = direct.start()?;
    let mut unknown = Options::new();
    unknown.special_fields.mut_unknown_fields().add_varint(99, 1);
    let cases =
        [("BinaryName", Options { binary_name: "/usr/bin/crun".to_owned(), ..Default::default() }), ("99", unknown)];
    for (name, options) in cases {
        let words = refused(try_create(&server, &options)?, Code::UNIMPLEMENTED)?;
        ensure!(words.contains(name) && words.contains(&test.id), "{words}");
    }
    // What concerns others is taken, and the container can still be created.
    let options = Options {
        root: "/run/somewhere".to_owned(),
        criu_image_path: "/var/images".to_owned(),
        criu_work_path: "/var/work".to_owned(),
        task_api_address: "ttrpc+unix:///run/somewhere".to_owned(),
        task_api_version: 3,
        ..Default::default()
    };
    create(&server, options)?;
    finish(&server, 0)?;
    direct.remove()
}

/// What the container sees of the keys it may look at.
fn keys(test: &Test, options: Options) -> Result<String> {
    let spec = test.spec(&["cat", "/proc/keys"])?.set("/linux/maskedPaths", json!([]))?;
    let direct = test.direct()?.config(&spec)?;
    let server = direct.start()?;
    create(&server, options)?;
    finish(&server, 0)?;
    let keys = server.stdout()?;
    direct.remove()?;
    Ok(keys)
}

/// What lies below the container's root, after it was unmounted: the host's root where it was moved, as switch_root(8)
/// does it; else what that is mounted on.
fn beneath(test: &Test, options: Options) -> Result<String> {
    let mut spec = test.spec(&["beneath"])?;
    for set in ["bounding", "permitted", "effective"] {
        let capabilities = spec.value["process"]["capabilities"][set].as_array_mut().context("capabilities")?;
        capabilities.extend([json!("CAP_SYS_ADMIN"), json!("CAP_SYS_CHROOT")]);
    }
    let direct = test.direct()?.config(&spec)?;
    let server = direct.start()?;
    create(&server, options)?;
    finish(&server, 0)?;
    let stdout = server.stdout()?;
    direct.remove()?;
    Ok(stdout)
}

/// The options as containerd 2.3 sends them to `start`.
fn bootstrap(direct: &Direct, file: &str) -> Result<Vec<u8>> {
    // message runtimeoptions.v1.Options { string config_path = 2; }
    let value = [&[0x12, u8::try_from(file.len())?], file.as_bytes()].concat();
    let any = Any { type_url: "runtimeoptions.v1.Options".to_owned(), value, ..Default::default() };
    let extension = Extension { value: MessageField::some(any), ..Default::default() };
    let parameters = BootstrapParams { extensions: vec![extension], ..direct.bootstrap() };
    parameters.write_to_bytes().context("encoding the bootstrap parameters")
}

/// Fails unless the shim is in the cgroups of that path.
fn lives_in(server: &Server, cgroups: &Cgroups) -> Result<()> {
    let connected: ConnectResponse =
        server.call("Connect", &ConnectRequest::new()).map_err(|error| anyhow!("Connect: {error}"))?;
    let file = format!("/proc/{}/cgroup", connected.shim_pid);
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let of_shim = text.lines().filter(|line| line.ends_with(&format!("/{}", cgroups.path))).count();
    ensure!(of_shim == cgroups.folders.len(), "in {of_shim} of {}:\n{text}", cgroups.folders.len());
    Ok(())
}

/// Ends the shim and waits for it, so that its cgroup can be removed.
fn end(server: Server) -> Result<()> {
    let connected: ConnectResponse =
        server.call("Connect", &ConnectRequest::new()).map_err(|error| anyhow!("Connect: {error}"))?;
    let shim = Process::of(connected.shim_pid).context("the shim has ended")?;
    server.shutdown()?;
    drop(server);
    shim.wait_for_end()
}

/// One cgroup in every hierarchy.
struct Cgroups {
    path: String,
    folders: Vec<PathBuf>,
}

impl Cgroups {
    fn make(path: &str) -> Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        let mut folders = Vec::new();
        let mut v1 = false;
        for line in mounts.lines() {
            let (Some(point), Some((_, filesystem))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
                continue;
            };
            match filesystem.split(' ').next() {
                Some("cgroup") => v1 = true,
                Some("cgroup2") => {}
                _ => continue,
            }
            folders.push((PathBuf::from(point), filesystem.starts_with("cgroup ")));
        }
        // Where there is v1, the unified hierarchy has no controllers for anybody.
        let folders: Vec<PathBuf> =
            folders.into_iter().filter(|(_, is_v1)| *is_v1 == v1).map(|(point, _)| point.join(path)).collect();
        for folder in &folders {
            make_cgroup(folder)?;
        }
        ensure!(!folders.is_empty(), "no cgroups on this host");
        Ok(Cgroups { path: path.to_owned(), folders })
    }

    fn remove(self) -> Result<()> {
        for folder in &self.folders {
            fs::remove_dir(folder).with_context(|| format!("removing {}", folder.display()))?;
            // Another test's may still be in it, which then removes it.
            let _ = folder.parent().map(fs::remove_dir);
        }
        Ok(())
    }
}

fn make_cgroup(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let parent = folder.parent().context("a cgroup has a parent")?;
    for cgroup in [parent, folder] {
        // A v1 cpuset takes no process before it has been given CPUs and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let above = cgroup.parent().context("a cgroup has a parent")?.join(file);
            if let (true, Ok(text)) = (cgroup.join("cgroup.clone_children").exists(), fs::read_to_string(above)) {
                fs::write(cgroup.join(file), text).with_context(|| format!("writing {file}"))?;
            }
        }
    }
    Ok(())
}
