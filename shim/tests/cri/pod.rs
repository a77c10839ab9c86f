//! A pod and its containers, as the kubelet makes them.
use crate::api::*;
use crate::client::Client;
use crate::harness::case::CaseOf;
use crate::harness::{Containerd, Kind, PATIENCE, leaks};
use anyhow::{Context, Result, ensure};
use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The runtime handler of containerd's configuration, as a RuntimeClass names it.
pub const HANDLER: &str = "under-test";

/// What a test does.
pub type Body = fn(&Test) -> Result<()>;

/// A test, not yet bound to a containerd.
pub type Case = CaseOf<Body>;

impl Case {
    /// Runs the test in a pod of its own, and looks for what it left behind.
    pub fn run(&self, containerd: &Containerd, kind: Kind, number: usize) -> Result<()> {
        let _turn = self.turn();
        let test = Test::new(containerd, kind, self.name_of(kind, number))?;
        let result = (self.body)(&test);
        // Whatever the test did: this is what a deleted pod takes.
        let removed = test.remove();
        result?;
        removed?;
        test.nothing_left()
    }
}

/// A running test.
pub struct Test<'a> {
    pub containerd: &'a Containerd,
    pub client: Client,
    pub kind: Kind,
    pub name: String,
    logs: PathBuf,
    pods: RefCell<Vec<String>>,
    ids: RefCell<Vec<String>>,
}

impl<'a> Test<'a> {
    fn new(containerd: &'a Containerd, kind: Kind, name: String) -> Result<Test<'a>> {
        let logs = containerd.fresh_path("logs");
        fs::create_dir(&logs).context("creating the folder of the logs")?;
        let client = Client::new(containerd.address());
        Ok(Test { containerd, client, kind, name, logs, pods: RefCell::default(), ids: RefCell::default() })
    }

    /// Runs a pod, changed at will.
    pub fn pod(&self, change: impl FnOnce(&mut PodSandboxConfig)) -> Result<Pod<'_>> {
        let name = format!("{}-{}", self.name, self.pods.borrow().len());
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod as i32,
            pid: NamespaceMode::Container as i32,
            ipc: NamespaceMode::Pod as i32,
            userns_options: None,
        };
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { uid: name.clone(), name, namespace: "default".into() }),
            log_directory: self.logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", crate::harness::NAMESPACE),
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
            }),
            ..Default::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: HANDLER.into() };
        let Id { id } = self.client.call("RunPodSandbox", &request)?;
        self.pods.borrow_mut().push(id.clone());
        self.ids.borrow_mut().push(id.clone());
        Ok(Pod { test: self, id, config })
    }

    fn remove(&self) -> Result<()> {
        for pod in self.pods.borrow().iter() {
            let id = Id { id: pod.clone() };
            self.client.call::<Empty>("StopPodSandbox", &id)?;
            self.client.call::<Empty>("RemovePodSandbox", &id)?;
        }
        Ok(())
    }

    fn nothing_left(&self) -> Result<()> {
        self.ids.borrow().iter().try_for_each(|id| leaks::none_of(self.containerd, id))
    }
}

/// A pod.
pub struct Pod<'a> {
    test: &'a Test<'a>,
    pub id: String,
    config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Creates a container that runs the probe with these arguments.
    pub fn create(
        &self,
        kind: Kind,
        name: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Container<'a>> {
        let log = format!("{name}.log");
        let linux = self.config.linux.clone();
        let namespace_options = linux.and_then(|linux| linux.security_context?.namespace_options);
        let security = LinuxContainerSecurityContext { namespace_options, ..Default::default() };
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(ImageSpec { image: kind.image(), ..Default::default() }),
            command: vec![kind.program().into()],
            args: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            log_path: log.clone(),
            linux: Some(LinuxContainerConfig { resources: None, security_context: Some(security) }),
            ..Default::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let Id { id } = self.test.client.call("CreateContainer", &request)?;
        self.test.ids.borrow_mut().push(id.clone());
        Ok(Container { test: self.test, id, kind, log: self.test.logs.join(log) })
    }

    /// The same, started.
    pub fn run(&self, kind: Kind, name: &str, arguments: &[&str]) -> Result<Container<'a>> {
        let container = self.create(kind, name, arguments, |_| ())?;
        container.start()?;
        Ok(container)
    }
}

/// A container of a pod.
pub struct Container<'a> {
    test: &'a Test<'a>,
    pub id: String,
    kind: Kind,
    log: PathBuf,
}

impl Container<'_> {
    fn call<Answer: prost::Message + Default>(&self, method: &str) -> Result<Answer> {
        self.test.client.call(method, &Id { id: self.id.clone() })
    }

    pub fn start(&self) -> Result<()> {
        self.call::<Empty>("StartContainer").map(drop)
    }

    /// SIGTERM, and SIGKILL so many seconds later.
    pub fn stop(&self, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        self.test.client.call::<Empty>("StopContainer", &request).map(drop)
    }

    pub fn remove(&self) -> Result<()> {
        self.call::<Empty>("RemoveContainer").map(drop)
    }

    pub fn status(&self) -> Result<ContainerStatus> {
        self.call::<ContainerStatusResponse>("ContainerStatus")?.status.context("no status")
    }

    pub fn stats(&self) -> Result<ContainerStats> {
        self.call::<ContainerStatsResponse>("ContainerStats")?.stats.context("no stats")
    }

    pub fn update(&self, resources: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(resources) };
        self.test.client.call::<Empty>("UpdateContainerResources", &request).map(drop)
    }

    /// Executes the probe with these arguments.
    pub fn exec(&self, arguments: &[&str]) -> Result<ExecSyncResponse> {
        self.exec_within(arguments, 0)
    }

    /// The same, to be ended after so many seconds.
    pub fn exec_within(&self, arguments: &[&str], timeout: i64) -> Result<ExecSyncResponse> {
        let cmd = [&[self.kind.program()], arguments].concat().into_iter().map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        self.test.client.call("ExecSync", &request)
    }

    /// Waits until the container has ended, as the kubelet does: by asking. Returns its exit code.
    pub fn ended(&self) -> Result<ContainerStatus> {
        self.until("has not ended", |container| {
            let status = container.status()?;
            Ok((status.state() == ContainerState::Exited).then_some(status))
        })
    }

    /// Waits until the container has logged a line with this text; lines are `TIME STREAM TAG TEXT`.
    pub fn logged(&self, text: &str) -> Result<()> {
        self.until(&format!("has not logged {text:?}"), |container| {
            Ok(container.log()?.lines().any(|line| line.ends_with(text)).then_some(()))
        })
    }

    /// What the container has logged.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// The CRI has no call that waits.
    fn until<T>(&self, otherwise: &str, look: impl Fn(&Self) -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            ensure!(Instant::now() < end, "{} {otherwise}", self.id);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
