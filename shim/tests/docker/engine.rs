//! A private Docker Engine, on a containerd of the harness, with the test images in it.
use crate::harness::command::output;
use crate::harness::containerd::await_ready;
use crate::harness::{Containerd, NAMESPACE};
use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A running dockerd.
pub struct Engine {
    pub containerd: Containerd,
    folder: PathBuf,
    programs: PathBuf,
    /// Nothing while a test has it stopped.
    daemon: Mutex<Option<Child>>,
    log: PathBuf,
    names: AtomicU64,
}

impl Engine {
    /// Starts the dockerd in the folder `programs` and loads `images`. All it writes is below `/run/hybrid/dockerd`, but
    /// for its log, which is kept as `log`.
    pub fn start(
        containerd: Containerd,
        programs: &Path,
        images: &[test_images::Image],
        log: PathBuf,
    ) -> Result<Engine> {
        let folder = PathBuf::from("/run/hybrid/dockerd");
        fs::create_dir_all(folder.join("client")).with_context(|| format!("creating {}", folder.display()))?;
        // Named, or dockerd would read that of the host.
        fs::write(folder.join("daemon.json"), "{}").context("writing dockerd's configuration")?;
        File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let (programs, daemon, names) = (programs.to_owned(), Mutex::new(None), AtomicU64::new(0));
        let engine = Engine { containerd, folder, programs, daemon, log, names };
        engine.start_daemon()?;
        for image in images {
            let archive = image.save(&engine.folder)?;
            output(engine.docker(&["load", "--input"]).arg(archive), b"")?.exits(0)?;
        }
        Ok(engine)
    }

    /// Starts dockerd, which finds again what an earlier one has left running.
    pub fn start_daemon(&self) -> Result<()> {
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default());
        let notify = self.fresh_path("notify");
        let ready = UnixDatagram::bind(&notify).context("binding the notification socket")?;
        let output_to = File::options().append(true).open(&self.log).context("opening dockerd's log")?;
        let mut command = Command::new(self.programs.join("dockerd"));
        for (option, value) in [
            ("--config-file", "daemon.json"),
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "dockerd.pid"),
        ] {
            command.arg(option).arg(self.folder.join(value));
        }
        let mut daemon = command
            .args(["--host", &self.host(), "--containerd"])
            .arg(self.containerd.address())
            // Under the names that the harness knows as the tests'.
            .args(["--containerd-namespace", NAMESPACE, "--cgroup-parent", &format!("/{NAMESPACE}")])
            // A host with systemd has it as the default; the namespaces the tests run in have none.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            // The default bridge works in a network namespace without iptables, which the machine may lack.
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false", "--userland-proxy=false"])
            .args(["--live-restore", "--debug"])
            .env("PATH", path)
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(output_to.try_clone().context("sharing the log")?)
            .stderr(output_to)
            .spawn()
            .context("starting dockerd")?;
        if let Err(error) = await_ready(&ready) {
            daemon.kill().and_then(|()| daemon.wait()).context("ending a dockerd that does not start")?;
            return Err(error.context(format!("dockerd did not start, see {}", self.log.display())));
        }
        *self.daemon.lock().expect("no holder panics") = Some(daemon);
        Ok(())
    }

    /// Stops dockerd in order; containers go on (`--live-restore`).
    pub fn stop_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().expect("no holder panics").take().context("dockerd is stopped")?;
        let pid = Pid::from_raw(daemon.id() as i32).context("a pid is positive")?;
        let asked = kill_process(pid, Signal::TERM);
        // Gone already, if it could not be asked.
        let status = daemon.wait().context("waiting for dockerd to stop")?;
        asked.context("stopping dockerd")?;
        ensure!(status.success(), "dockerd stopped with {status}");
        Ok(())
    }

    /// `docker`, speaking to this dockerd.
    pub fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("docker"));
        command
            .args(arguments)
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.folder.join("client"))
            .env_remove("DOCKER_CONTEXT");
        command
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.display())
    }

    /// A path below this engine's folder that nobody else uses.
    pub fn fresh_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where dockerd logs to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Stops dockerd after the last test, and returns its containerd.
    pub fn stop(self) -> Result<Containerd> {
        let containers = output(&mut self.docker(&["ps", "--all", "--quiet"]), b"")?.exits(0)?.stdout;
        ensure!(containers.is_empty(), "containers left in dockerd: {containers}");
        self.stop_daemon()?;
        // With --live-restore dockerd leaves its own mounts to the next one; a container's would be a fault of somebody.
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        let (data, networks) = (self.folder.join("data"), self.folder.join("exec/netns"));
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
            if path == data || path.starts_with(&networks) {
                unmount(path, UnmountFlags::empty()).with_context(|| format!("unmounting {}", path.display()))?;
            }
        }
        Ok(self.containerd)
    }
}
