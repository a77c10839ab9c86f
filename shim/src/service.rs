//! The task service: each method decodes a request, makes one call, and encodes the answer.
//!
//! The same service answers as `containerd.task.v2.Task` and `containerd.task.v3.Task`: their messages are the same.

use crate::serve::Stop;
use crate::status::{rpc_error, task_status, timestamp};
use crate::stdio::Names;
use crate::task::{Creation, ExecRequest, State, Task as OneTask, TaskProcess, Tasks};
use crate::{RUNTIME, options, stats};
use anyhow::anyhow;
use containerd_shim_protos::api::*;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::types::task::ProcessInfo;
use executors::{Error, ExecSpec, Kind, Result, RootfsMount};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{EnumOrUnknown, Message, MessageField};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use ttrpc::asynchronous::{Service as Methods, TtrpcContext};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// The task service of one shim.
pub struct Service {
    tasks: Arc<Tasks>,
    stop: Arc<Stop>,
}

impl Service {
    pub fn new(tasks: Arc<Tasks>, stop: Arc<Stop>) -> Arc<Self> {
        Arc::new(Self { tasks, stop })
    }

    /// The service under both of its names.
    pub fn methods(self: &Arc<Self>) -> HashMap<String, Methods> {
        let mut services = create_task(self.clone());
        let v2 = create_task(self.clone()).into_values().map(|methods| (V2.to_owned(), methods));
        services.extend(v2);
        debug_assert!(services.contains_key(V3));
        services
    }

    fn find(&self, id: &str, exec_id: &str) -> Result<(Arc<OneTask>, Arc<TaskProcess>)> {
        let task = self.tasks.find(id)?;
        let process = task.process(exec_id)?;
        Ok((task, process))
    }
}

/// Answers a call: the one place where its error is logged.
fn answer<T>(method: &str, id: &str, result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        let error = error.context(format!("container {id}"));
        match error.kind() {
            // Part of normal life: containerd asks for what may be gone.
            Kind::NotFound => log::debug!(id = id; "{method}: {error}"),
            Kind::Internal => log::error!(id = id; "{method}: {error}"),
            _ => log::warn!(id = id; "{method}: {error}"),
        }
        rpc_error(&error)
    })
}

/// Runs a call to its end even if containerd gives up on it: a container must not stay half made.
async fn to_the_end<T: Send + 'static>(call: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(call)
        .await
        .unwrap_or_else(|error| Err(Error::new(Kind::Internal, anyhow!("the call failed: {error}"))))
}

fn unimplemented(what: &str) -> Error {
    Error::new(Kind::Unimplemented, anyhow!("{what}: not implemented by {RUNTIME}"))
}

fn signal(number: u32) -> Result<i32> {
    i32::try_from(number)
        .map_err(|error| Error::new(Kind::InvalidArgument, error).context(format!("{number} is not a signal")))
}

fn creation(request: CreateTaskRequest) -> Result<Creation> {
    if request.id.is_empty() || request.bundle.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, anyhow!("the request names no id or no bundle")));
    }
    if !request.parent_checkpoint.is_empty() {
        return Err(unimplemented("parent_checkpoint: restoring a part of a checkpoint"));
    }
    let options = options::parse(request.options.as_ref())?;
    let names =
        Names { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
    let rootfs = request.rootfs.iter().map(|mount| RootfsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    });
    let rootfs = rootfs.collect();

    let mut io = TaskIO::new();
    io.stdin = names.stdin.clone();
    io.stdout = names.stdout.clone();
    io.stderr = names.stderr.clone();
    io.terminal = names.terminal;
    let mut event = TaskCreate::new();
    event.container_id = request.id.clone();
    event.bundle = request.bundle.clone();
    event.rootfs = request.rootfs;
    event.io = MessageField::some(io);
    event.checkpoint = request.checkpoint.clone();
    let checkpoint = (!request.checkpoint.is_empty()).then(|| request.checkpoint.into());
    Ok(Creation { id: request.id, bundle: request.bundle.into(), rootfs, names, options, checkpoint, event })
}

/// The JSON of a part of the OCI spec, whose type's name is the end of its URL (containerd: core/runtime/typeurl.go).
fn json_of<'a>(any: &'a MessageField<Any>, name: &str) -> Result<&'a [u8]> {
    match any.as_ref() {
        Some(any) if any.type_url.rsplit('/').next() == Some(name) => Ok(&any.value),
        Some(any) => Err(Error::new(Kind::InvalidArgument, anyhow!("{:?} is not the type {name}", any.type_url))),
        None => Err(Error::new(Kind::InvalidArgument, anyhow!("the request has no {name}"))),
    }
}

fn exec_request(request: ExecProcessRequest) -> Result<ExecRequest> {
    if request.exec_id.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, anyhow!("the request names no exec id")));
    }
    let spec = json_of(&request.spec, "Process").and_then(ExecSpec::parse);
    let spec = spec.map_err(|error| error.context(format!("exec {}", request.exec_id)))?;
    let names =
        Names { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
    Ok(ExecRequest { exec_id: request.exec_id, spec, names })
}

fn state(task: &OneTask, exec_id: String, process: &TaskProcess) -> StateResponse {
    let state = process.state();
    let mut response = StateResponse::new();
    response.id = task.id.clone();
    response.exec_id = exec_id;
    response.bundle = task.bundle.to_string_lossy().into_owned();
    response.pid = process.pid();
    response.status = EnumOrUnknown::new(task_status(&state, task.freezer()));
    response.stdin = process.names.stdin.clone();
    response.stdout = process.names.stdout.clone();
    response.stderr = process.names.stderr.clone();
    response.terminal = process.names.terminal;
    if let State::Stopped(exit) = state {
        response.exit_status = exit.code;
        response.exited_at = timestamp(exit.at);
    }
    response
}

/// What containerd's clients are told of one process: for an exec'd one its id, as runc's shim has it.
fn process_info((pid, exec_id): (u32, Option<String>)) -> ProcessInfo {
    let mut info = ProcessInfo { pid, ..Default::default() };
    if let Some(exec_id) = exec_id {
        let details = ProcessDetails { exec_id, ..Default::default() };
        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.ProcessDetails".to_owned();
        // Writing to memory does not fail.
        any.value = details.write_to_bytes().unwrap_or_default();
        info.info = MessageField::some(any);
    }
    info
}

#[async_trait::async_trait]
impl Task for Service {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let (id, tasks) = (request.id.clone(), self.tasks.clone());
        let result = to_the_end(async move { tasks.create(creation(request)?).await }).await;
        let mut response = CreateTaskResponse::new();
        response.pid = answer("Create", &id, result)?;
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let result = match self.find(&request.id, &request.exec_id) {
            Ok((task, _)) if request.exec_id.is_empty() => to_the_end(self.tasks.clone().start(task)).await,
            Ok((task, exec)) => to_the_end(self.tasks.clone().start_exec(task, exec)).await,
            Err(error) => Err(error),
        };
        let mut response = StartResponse::new();
        response.pid = answer("Start", &request.id, result)?;
        Ok(response)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (task, process) = answer("State", &request.id, self.find(&request.id, &request.exec_id))?;
        Ok(state(&task, request.exec_id, &process))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = answer("Wait", &request.id, self.find(&request.id, &request.exec_id))?;
        let exit = process.stopped().await;
        let mut response = WaitResponse::new();
        response.exit_status = exit.code;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let found = self.find(&request.id, &request.exec_id);
        let result = match (found, signal(request.signal)) {
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok((task, process)), Ok(signal)) => to_the_end(task.kill(process, signal, request.all)).await,
        };
        answer("Kill", &request.id, result).map(|()| Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let result = match self.find(&request.id, &request.exec_id) {
            Ok((task, _)) if request.exec_id.is_empty() => to_the_end(self.tasks.clone().delete(task)).await,
            Ok((task, exec)) => to_the_end(self.tasks.clone().delete_exec(task, exec)).await,
            Err(error) => {
                if request.exec_id.is_empty() {
                    self.tasks.abandon(&request.id);
                }
                Err(error)
            }
        };
        let (pid, exit) = answer("Delete", &request.id, result)?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.code;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let result = async { self.tasks.find(&request.id)?.pids().await }.await;
        let pids = answer("Pids", &request.id, result)?;
        let mut response = PidsResponse::new();
        response.processes = pids.into_iter().map(process_info).collect();
        Ok(response)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = answer("CloseIO", &request.id, self.find(&request.id, &request.exec_id))?;
        process.close_stdin();
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        let result = self.tasks.find(&id).and_then(|task| self.tasks.add_exec(&task, exec_request(request)?));
        answer("Exec", &id, result).map(|()| Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let result = self.find(&request.id, &request.exec_id);
        let result = result.and_then(|(_, process)| process.resize(request.height, request.width));
        answer("ResizePty", &request.id, result).map(|()| Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let update = async {
            let task = self.tasks.find(&request.id)?;
            let resources = json_of(&request.resources, "LinuxResources")?;
            to_the_end(task.update(resources.to_vec())).await
        };
        answer("Update", &request.id, update.await).map(|()| Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let result = async { stats::any(&self.tasks.find(&request.id)?.stats().await?) }.await;
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(answer("Stats", &request.id, result)?);
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let result = async { to_the_end(self.tasks.clone().pause(self.tasks.find(&request.id)?)).await }.await;
        answer("Pause", &request.id, result).map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let result = async { to_the_end(self.tasks.clone().resume(self.tasks.find(&request.id)?)).await }.await;
        answer("Resume", &request.id, result).map(|()| Empty::new())
    }

    /// Answers for any container: containerd asks when it finds a bundle after a restart.
    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let init = self.find(&request.id, "").map(|(_, process)| process.pid());
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = init.unwrap_or_default();
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(response)
    }

    /// Ends the shim when no container is left, and does nothing before.
    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if !self.tasks.close_if_empty() {
            return Ok(Empty::new());
        }
        if self.tasks.is_empty() {
            self.stop.request();
        } else {
            let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
            tokio::spawn(async move {
                tasks.emptied().await;
                stop.request();
            });
        }
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let checkpoint = async {
            let task = self.tasks.find(&request.id)?;
            let (options, criu) = options::checkpoint(&request.path, request.options.as_ref(), task.criu())?;
            to_the_end(self.tasks.clone().checkpoint(task, options, criu)).await
        };
        answer("Checkpoint", &request.id, checkpoint.await.map(|()| Empty::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut CreateTaskRequest)) -> Result<Creation> {
        let mut request = CreateTaskRequest::new();
        request.id = "a".into();
        request.bundle = "/b".into();
        request.stdout = "/o".into();
        change(&mut request);
        creation(request)
    }

    #[test]
    fn a_request_becomes_a_creation_and_its_event() {
        let creation = request(|_| {}).unwrap();
        assert_eq!((creation.id.as_str(), creation.bundle.to_str()), ("a", Some("/b")));
        assert_eq!(creation.names.stdout, "/o");
        assert_eq!(creation.event.container_id, "a");
        assert_eq!(creation.event.io.stdout, "/o");
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        type Change = fn(&mut CreateTaskRequest);
        let changes: [(&str, Change); 1] = [("parent_checkpoint", |r| r.parent_checkpoint = "/c".into())];
        for (name, change) in changes {
            let error = request(change).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().contains(name), "{error}");
        }
        let error = request(|r| r.bundle.clear()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }

    #[test]
    fn a_signal_is_a_small_number() {
        assert_eq!(signal(9).unwrap(), 9);
        assert_eq!(signal(u32::MAX).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
