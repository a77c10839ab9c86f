//! A private containerd of one release line, with the test images in it.
use super::command::{Output, output};
use super::events::Events;
use super::{Kind, NAMESPACE, PATIENCE, limit};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// The runtime under test. runc's shim is there to test the tests, and to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Hybrid,
    Runc,
}

impl Runtime {
    /// As `HYBRID_RUNTIME` names it; hybrid when it is not set.
    pub fn from_env() -> Result<Runtime> {
        match std::env::var("HYBRID_RUNTIME").as_deref() {
            Err(_) | Ok("" | "io.containerd.hybrid.v1") => Ok(Runtime::Hybrid),
            Ok("io.containerd.runc.v2") => Ok(Runtime::Runc),
            Ok(other) => bail!("HYBRID_RUNTIME={other}: known are io.containerd.hybrid.v1 and io.containerd.runc.v2"),
        }
    }

    /// The name `ctr run --runtime` takes.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Hybrid => "io.containerd.hybrid.v1",
            Runtime::Runc => "io.containerd.runc.v2",
        }
    }
}

/// A program that is built when the first test needs it.
type Built = OnceLock<Result<PathBuf, String>>;

/// What a containerd is to do beside running what `ctr` asks for.
#[derive(Default)]
struct Setup<'a> {
    /// Where traces are exported to.
    collector: Option<&'a str>,
    /// The runtime handler under which pods get the runtime; without one there is no Container Runtime Interface.
    handler: Option<&'a str>,
}

/// A running containerd.
pub struct Containerd {
    /// The release line: `1.6`, `1.7` or `2.x`.
    pub line: String,
    pub runtime: Runtime,
    pub events: Events,
    folder: PathBuf,
    programs: PathBuf,
    daemon: Mutex<Child>,
    log: PathBuf,
    names: AtomicU64,
    logger: Built,
    hook: Built,
    /// Whether the artifacts were imported.
    pub(super) artifacts: OnceLock<Result<(), String>>,
}

impl Containerd {
    /// Starts the containerd in the folder `programs` and imports `images`. All it writes is below
    /// `/run/hybrid/<line>`, but for its log, which is kept as `log`.
    pub fn start(
        line: &str,
        programs: &Path,
        runtime: Runtime,
        images: &[test_images::Image],
        log: PathBuf,
    ) -> Result<Containerd> {
        let folder = Path::new("/run/hybrid").join(line);
        let containerd = Containerd::boot(line, programs, runtime, folder, log, &Setup::default())?;
        for image in images {
            let archive = image.save(&containerd.folder)?;
            containerd.ctr(["image", "import"]).arg(archive).done()?;
            image.unpack(&containerd.rootfs(image.name()))?;
        }
        Ok(containerd)
    }

    /// Starts one that serves the Container Runtime Interface, too, with the runtime as the handler `handler`, and with the
    /// images in the namespace of Kubernetes.
    #[allow(dead_code, reason = "only the tests through the Container Runtime Interface ask for it")]
    pub fn start_for_pods(
        line: &str,
        programs: &Path,
        runtime: Runtime,
        images: &[test_images::Image],
        log: PathBuf,
        handler: &'static str,
    ) -> Result<Containerd> {
        let folder = Path::new("/run/hybrid").join(line);
        let setup = Setup { handler: Some(handler), ..Setup::default() };
        network(&folder.join("cni")).context("making a network for pods")?;
        let containerd = Containerd::boot(line, programs, runtime, folder, log, &setup)?;
        for image in images {
            let archive = image.save(&containerd.folder)?;
            containerd.ctr(["--namespace", "k8s.io", "image", "import"]).arg(archive).done()?;
        }
        Ok(containerd)
    }

    /// Starts another of the same release line in a folder of its own, for a test that restarts it. It has the images
    /// of the probe.
    pub fn another(&self, name: &str) -> Result<Containerd> {
        self.another_with(name, None)
    }

    /// Another that exports traces to a collector, as its shims do, which get its environment.
    pub fn another_traced(&self, name: &str, collector: &str) -> Result<Containerd> {
        self.another_with(name, Some(collector))
    }

    fn another_with(&self, name: &str, collector: Option<&str>) -> Result<Containerd> {
        let folder = self.folder.with_file_name(name);
        let log = self.log.with_file_name(format!("containerd-{name}.log"));
        let setup = Setup { collector, ..Setup::default() };
        let containerd = Containerd::boot(&self.line, &self.programs, self.runtime, folder, log, &setup)?;
        for kind in Kind::ALL {
            let archive = self.folder.join(format!("{}.tar", kind.image_name()));
            containerd.ctr(["image", "import"]).arg(archive).done()?;
        }
        Ok(containerd)
    }

    /// The pid of a task's init.
    pub fn pid(&self, id: &str) -> Result<u32> {
        let pid = self.listed(id, 1)?;
        pid.parse().with_context(|| format!("no pid of {id}: {pid}"))
    }

    /// A column of what `ctr tasks list` shows of a task.
    pub fn listed(&self, id: &str, column: usize) -> Result<String> {
        let list = self.ctr(["tasks", "list"]).done()?;
        let mut rows = list.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&id)).with_context(|| format!("{id} is not in {list}"))?;
        row.get(column).map(|word| (*word).to_owned()).with_context(|| format!("no column {column} of {id} in {list}"))
    }

    /// Ends it with a signal and waits for its end. Nothing can be asked of it until it is [`again`](Containerd::again).
    pub fn halt(&mut self, signal: Signal) -> Result<()> {
        self.events.close()?;
        let daemon = self.daemon.get_mut().expect("no holder panics");
        let pid = Pid::from_raw(daemon.id() as i32).context("a pid is positive")?;
        kill_process(pid, signal).context("ending containerd")?;
        daemon.wait().context("waiting for containerd's end").map(drop)
    }

    /// Starts it again on what it left, with the programs in this folder.
    pub fn again(&mut self, programs: &Path) -> Result<()> {
        self.programs = programs.to_owned();
        *self.daemon.get_mut().expect("no holder panics") = launch(programs, &self.folder, &self.log, None)?;
        self.events = open_events(programs, &self.folder)?;
        Ok(())
    }

    fn boot(
        line: &str,
        programs: &Path,
        runtime: Runtime,
        folder: PathBuf,
        log: PathBuf,
        setup: &Setup,
    ) -> Result<Containerd> {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::write(folder.join("config.toml"), configuration(&folder, runtime, setup))
            .context("writing containerd's configuration")?;
        File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let daemon = launch(programs, &folder, &log, setup.collector)?;
        Ok(Containerd {
            line: line.to_owned(),
            runtime,
            events: open_events(programs, &folder)?,
            folder,
            programs: programs.to_owned(),
            daemon: Mutex::new(daemon),
            log,
            names: AtomicU64::new(0),
            logger: OnceLock::new(),
            hook: OnceLock::new(),
            artifacts: OnceLock::new(),
        })
    }

    /// Where all it writes lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder with its programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// `ctr`, speaking to this containerd in the tests' namespace.
    pub fn ctr<const N: usize>(&self, arguments: [&str; N]) -> Ctr {
        let mut command = ctr_command(&self.programs.join("ctr"), &self.folder);
        command.args(arguments);
        Ctr(command)
    }

    /// The shim's binary that this containerd starts for a runtime.
    pub fn shim(&self, runtime: Runtime) -> PathBuf {
        match runtime {
            Runtime::Hybrid => hybrid_binary(),
            Runtime::Runc => self.programs.join("containerd-shim-runc-v2"),
        }
    }

    /// The log driver of the test images, as a program on the host.
    pub fn logger(&self) -> Result<&Path> {
        self.program(&self.logger, "logger", test_images::logger)
    }

    /// The hook of the test images, as a program on the host.
    pub fn hook(&self) -> Result<&Path> {
        self.program(&self.hook, "hook", test_images::hook)
    }

    fn program<'a>(&self, built: &'a Built, name: &str, compile: fn() -> Result<Vec<u8>>) -> Result<&'a Path> {
        let build = || {
            let (path, bytes) = (self.folder.join(name), self.folder.join(format!("{name}.bytes")));
            fs::write(&bytes, compile()?).with_context(|| format!("writing the {name}"))?;
            // Not by us: a program under way to its execve would hold our descriptor, and the file be busy (execve(2)).
            let mut install = Command::new("install");
            output(install.args(["-m", "0755"]).arg(&bytes).arg(&path), b"")?.exits(0)?;
            Ok::<_, anyhow::Error>(path)
        };
        let built = built.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        built.as_deref().map_err(|error| anyhow!("{error}"))
    }

    /// Where hybrid keeps precompiled code.
    pub fn wasm_cache(&self) -> PathBuf {
        self.folder.join("wasm-cache")
    }

    /// The unpacked root file system of an image, for specs written by hand. Shared: never written to.
    pub fn rootfs(&self, image: &str) -> PathBuf {
        self.folder.join("rootfs").join(image)
    }

    /// The address of containerd's gRPC socket; that of ttrpc has `.ttrpc` appended.
    pub fn address(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// A path below this containerd's folder that nobody else uses.
    pub fn fresh_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where bundles and the state of tasks lie: nothing of a container may stay there.
    pub fn task_folders(&self) -> Vec<PathBuf> {
        vec![
            self.folder.join("state/io.containerd.runtime.v2.task"),
            self.folder.join("root/io.containerd.runtime.v2.task"),
        ]
    }

    /// The number of descriptors containerd has open.
    pub fn descriptors(&self) -> Result<usize> {
        let pid = self.daemon.lock().expect("no holder panics").id();
        Ok(fs::read_dir(format!("/proc/{pid}/fd")).context("listing containerd's descriptors")?.count())
    }

    /// Where containerd, and the shims through it, log to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What containerd, and the shims through it, have logged so far.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Stops containerd in order.
    pub fn stop(mut self) -> Result<()> {
        let containers = self.ctr(["containers", "list", "-q"]).done()?.stdout;
        self.events.close()?;
        let pid = self.daemon.lock().expect("no holder panics").id();
        let pid = Pid::from_raw(pid as i32).context("a pid is positive")?;
        let mut daemon = self.daemon.into_inner().expect("no holder panics");
        let asked = kill_process(pid, Signal::TERM);
        // Gone already, if it could not be asked.
        let status = daemon.wait().context("waiting for containerd to stop")?;
        asked.context("stopping containerd")?;
        ensure!(status.success(), "containerd {} stopped with {status}", self.line);
        ensure!(containers.is_empty(), "containers left in containerd {}: {containers}", self.line);
        Ok(())
    }
}

/// A call of `ctr` being put together.
pub struct Ctr(Command);

impl Ctr {
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Ctr {
        self.0.arg(argument);
        self
    }

    pub fn command(self) -> Command {
        self.0
    }

    /// Runs it to its end, whatever the exit code.
    pub fn output(mut self) -> Result<Output> {
        output(&mut self.0, b"")
    }

    /// Runs it; an exit code other than 0 is an error.
    pub fn done(self) -> Result<Output> {
        self.output()?.exits(0)
    }
}

/// Starts the daemon on what lies in its folder, and waits until it answers.
fn launch(programs: &Path, folder: &Path, log: &Path, collector: Option<&str>) -> Result<Child> {
    // containerd looks for the runtime's binary in its PATH, and runc's shim for runc.
    let path = format!(
        "{}:{}:{}",
        hybrid_binary().parent().context("the shim lies in a folder")?.display(),
        programs.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let notify = folder.join("notify");
    if notify.exists() {
        fs::remove_file(&notify).context("removing the notification socket of the last start")?;
    }
    let ready = UnixDatagram::bind(&notify).context("binding the notification socket")?;
    let output = OpenOptions::new().append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let mut daemon = Command::new(programs.join("containerd"))
        .args(["--log-level", "debug", "--config"])
        .arg(folder.join("config.toml"))
        .env("PATH", path)
        .env("HYBRID_WASM_CACHE", folder.join("wasm-cache"))
        .env("NOTIFY_SOCKET", &notify)
        .envs(collector.map(|collector| ("OTEL_EXPORTER_OTLP_ENDPOINT", collector)))
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("sharing the log")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("starting {}/containerd", programs.display()))?;
    if let Err(error) = await_ready(&ready) {
        daemon.kill().and_then(|()| daemon.wait()).context("ending a containerd that does not start")?;
        return Err(error.context(format!("{}/containerd did not start, see {}", programs.display(), log.display())));
    }
    Ok(daemon)
}

/// The namespace of the tests is made by the first label it is given.
fn open_events(programs: &Path, folder: &Path) -> Result<Events> {
    let ctr = programs.join("ctr");
    let number = AtomicU64::new(0);
    Events::open(ctr_command(&ctr, folder), || {
        let label = format!("probe={}", number.fetch_add(1, Ordering::Relaxed));
        let mut command = ctr_command(&ctr, folder);
        output(command.args(["namespaces", "label", NAMESPACE, &label]), b"")?.exits(0).map(drop)
    })
}

fn ctr_command(ctr: &Path, folder: &Path) -> Command {
    let mut command = Command::new(ctr);
    command
        .arg("--address")
        .arg(folder.join("containerd.sock"))
        .args(["--namespace", NAMESPACE])
        .env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true");
    command
}

/// The binary under test: `HYBRID_SHIM`, or the one cargo built with the tests.
pub fn hybrid_binary() -> PathBuf {
    std::env::var_os("HYBRID_SHIM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-hybrid-v1")), PathBuf::from)
}

/// Configuration version 2, which every line from 1.6 on reads. Plugins that reach outside the folder are off.
fn configuration(folder: &Path, runtime: Runtime, setup: &Setup) -> String {
    let (folder, mut off) = (folder.display(), String::new());
    if setup.collector.is_none() {
        off += r#""io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "#;
    }
    let pods = match setup.handler {
        Some(handler) => pods(&folder.to_string(), runtime, handler),
        None => {
            off += r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "#;
            off += r#""io.containerd.podsandbox.controller.v1.podsandbox", "#;
            String::new()
        }
    };
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  {off}
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
]
[grpc]
address = "{folder}/containerd.sock"
{pods}"#
    )
}

/// The Container Runtime Interface, with one handler.
fn pods(folder: &str, runtime: Runtime, handler: &str) -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/hybrid/pause:latest"
stream_server_address = "127.0.0.1"
# Pods ask for a score below that of containerd, which takes CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/cni/bin"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "{handler}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}]
runtime_type = "{runtime}"
"#,
        runtime = runtime.name()
    )
}

/// A network for pods without any: its plugin says of a new network namespace that it is ready (CNI specification 1.0.0).
fn network(folder: &Path) -> Result<()> {
    const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],'
    echo '"ips":[{"version":"4","interface":0,"address":"10.1.1.1/24"}]}' ;;
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
esac
"#;
    let programs = folder.join("bin");
    fs::create_dir_all(&programs)?;
    for name in ["loopback", "nothing"] {
        fs::write(programs.join(name), PLUGIN)?;
        fs::set_permissions(programs.join(name), Permissions::from_mode(0o755))?;
    }
    let list = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "nothing"}]}"#;
    fs::write(folder.join("10-pods.conflist"), list)?;
    Ok(())
}

/// Waits for the READY=1 that containerd and dockerd send as services of systemd do (sd_notify(3)).
pub fn await_ready(socket: &UnixDatagram) -> Result<()> {
    socket.set_read_timeout(Some(limit(PATIENCE))).context("setting the time limit")?;
    let mut message = [0; 4096];
    loop {
        let n = socket.recv(&mut message).context("waiting for READY=1")?;
        if message[..n].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}
