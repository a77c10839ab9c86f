//! `wasi:sockets/ip-name-lookup`, in place of Wasmtime's own, which asks the C library.

use std::net::IpAddr;
use std::sync::Arc;

use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::{ip_name_lookup as v02, network as v02_network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as v03;
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;

use super::{Failure, Policy};
use crate::component::State;
use crate::facts::Imports;

/// What the interface's functions are given.
pub(crate) struct View<'a> {
    table: &'a mut ResourceTable,
    policy: &'a Arc<Policy>,
}

/// The type of [`View`], for the linker.
pub(crate) struct Lookup;

impl HasData for Lookup {
    type Data<'a> = View<'a>;
}

/// Defines the interface anew, over what is linked already.
pub(crate) fn link(linker: &mut Linker<State>, imports: Imports) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> View<'_> {
        View { table: &mut state.table, policy: &state.policy }
    }
    if imports.wasi02 {
        v02::add_to_linker::<State, Lookup>(linker, view)?;
    }
    if imports.wasi03 {
        v03::add_to_linker::<State, Lookup>(linker, view)?;
    }
    Ok(())
}

/// What is asked for: an address in text form, or a name in the form that DNS has for it.
enum Asked {
    Address(IpAddr),
    Name(String),
}

/// `None` for what is neither.
fn asked(text: &str) -> Option<Asked> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Asked::Address(address));
    }
    // Domains of other scripts become their ASCII form.
    Some(match url::Host::parse(text).ok()? {
        url::Host::Domain(name) => Asked::Name(name.strip_suffix('.').map(str::to_owned).unwrap_or(name)),
        url::Host::Ipv4(address) => Asked::Address(address.into()),
        url::Host::Ipv6(address) => Asked::Address(address.into()),
    })
}

/// The lookup that a stream of addresses is the outcome of.
enum Stream {
    Waiting(AbortOnDropJoinHandle<Result<Vec<IpAddr>, Failure>>),
    Found(std::vec::IntoIter<IpAddr>),
    Failed(Failure),
}

impl Stream {
    fn end(&mut self, result: Result<Vec<IpAddr>, Failure>) {
        *self = match result {
            Ok(addresses) => Stream::Found(addresses.into_iter()),
            Err(failure) => Stream::Failed(failure),
        };
    }
}

#[async_trait::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {
        if let Stream::Waiting(task) = self {
            let result = task.await;
            self.end(result);
        }
    }
}

/// The stream behind a handle of WASI's, whose own type can't be made here. The table knows what it holds.
fn stream(handle: &Resource<v02::ResolveAddressStream>) -> Resource<Stream> {
    Resource::new_own(handle.rep())
}

// What the generated code for errors asks for; the interface `network` itself stays Wasmtime's.
impl v02_network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<v02_network::ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<v02_network::ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<std::io::Error>().map(v02_network::ErrorCode::from))
    }
}

impl v02_network::HostNetwork for View<'_> {
    fn drop(&mut self, network: Resource<v02_network::Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl v02::Host for View<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<v02_network::Network>,
        name: String,
    ) -> Result<Resource<v02::ResolveAddressStream>, SocketError> {
        self.table.get(&network)?;
        let new = match asked(&name) {
            None => return Err(v02_network::ErrorCode::InvalidArgument.into()),
            Some(Asked::Address(address)) => Stream::Found(vec![address].into_iter()),
            Some(Asked::Name(name)) => {
                let policy = self.policy.clone();
                Stream::Waiting(wasmtime_wasi::runtime::spawn(async move { policy.resolve(&name).await }))
            }
        };
        Ok(Resource::new_own(self.table.push(new)?.rep()))
    }
}

impl v02::HostResolveAddressStream for View<'_> {
    fn resolve_next_address(
        &mut self,
        handle: Resource<v02::ResolveAddressStream>,
    ) -> Result<Option<v02_network::IpAddress>, SocketError> {
        use v02_network::ErrorCode;
        let stream = self.table.get_mut(&stream(&handle))?;
        if let Stream::Waiting(task) = stream
            && let Some(result) = wasmtime_wasi::runtime::poll_noop(std::pin::Pin::new(task))
        {
            stream.end(result);
        }
        match stream {
            Stream::Waiting(_) => Err(ErrorCode::WouldBlock.into()),
            Stream::Found(addresses) => Ok(addresses.next().map(Into::into)),
            Stream::Failed(Failure::Denied) => Err(ErrorCode::AccessDenied.into()),
            Stream::Failed(Failure::Unknown) => Err(ErrorCode::NameUnresolvable.into()),
            Stream::Failed(Failure::Unanswered) => Err(ErrorCode::TemporaryResolverFailure.into()),
        }
    }

    fn subscribe(&mut self, handle: Resource<v02::ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, Resource::<Stream>::new_borrow(handle.rep()))
    }

    fn drop(&mut self, handle: Resource<v02::ResolveAddressStream>) -> wasmtime::Result<()> {
        self.table.delete(stream(&handle))?;
        Ok(())
    }
}

impl v03::Host for View<'_> {}

impl<T> v03::HostWithStore<T> for Lookup {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<v03::IpAddress>, v03::ErrorCode>> {
        let result = match asked(&name) {
            None => return Ok(Err(v03::ErrorCode::InvalidArgument)),
            Some(Asked::Address(address)) => Ok(vec![address]),
            Some(Asked::Name(name)) => {
                let policy = store.with(|mut store| store.get().policy.clone());
                policy.resolve(&name).await
            }
        };
        Ok(match result {
            Ok(addresses) => Ok(addresses.into_iter().map(Into::into).collect()),
            Err(Failure::Denied) => Err(v03::ErrorCode::AccessDenied),
            Err(Failure::Unknown) => Err(v03::ErrorCode::NameUnresolvable),
            Err(Failure::Unanswered) => Err(v03::ErrorCode::TemporaryResolverFailure),
        })
    }
}
