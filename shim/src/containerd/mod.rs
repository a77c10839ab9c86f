//! containerd's own API, for what no task request has: images and their content.
//!
//! Only what is not in a bundle is asked for, so a container whose program is in its root file system opens no connection; and
//! none outlives the creation that needed it.

mod grpc;
mod messages;
mod snapshot;

pub use grpc::Connection;
pub use messages::{Event, SubscribeRequest};
pub use snapshot::View;

use anyhow::anyhow;
use executors::{Digest, Error, ImageRecord, ImageStore, Kind, Result};
use messages::{
    GetContainerRequest, GetContainerResponse, GetImageRequest, GetImageResponse, Image, ListImagesRequest,
    ListImagesResponse, ListNamespacesRequest, ListNamespacesResponse, ReadContentRequest, ReadContentResponse,
};
use std::cell::{RefCell, RefMut};
use std::io::Write;

/// How containerd's API is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// containerd's gRPC socket; empty where there is none.
    pub address: String,
    pub namespace: String,
}

/// Whose image it is.
enum Wanted {
    Container {
        id: String,
        /// The name that the image was asked for by, if that is known.
        image: Option<String>,
    },
    Image(String),
}

/// One of containerd's images, and all content.
pub struct Images {
    access: Access,
    wanted: Wanted,
    /// Opened with the first call.
    connection: RefCell<Option<Connection>>,
}

impl Images {
    /// The image of the container with this id, which may have been asked for by a name.
    pub fn of_container(access: &Access, id: &str, image: Option<&str>) -> Images {
        Images::new(access, Wanted::Container { id: id.to_owned(), image: image.map(full_name) })
    }

    /// The image of this name.
    pub fn named(access: &Access, name: &str) -> Images {
        Images::new(access, Wanted::Image(name.to_owned()))
    }

    fn new(access: &Access, wanted: Wanted) -> Images {
        Images { access: access.clone(), wanted, connection: RefCell::default() }
    }

    fn connection(&self) -> Result<RefMut<'_, Connection>> {
        let mut connection = self.connection.borrow_mut();
        if connection.is_none() {
            *connection = Some(Connection::open(&self.access)?);
        }
        RefMut::filter_map(connection, Option::as_mut)
            .map_err(|_| Error::new(Kind::Internal, anyhow!("a connection that was just opened")))
    }

    /// The name of the image; a container that containerd doesn't know has none.
    fn name(&self) -> Result<Option<String>> {
        let request = match &self.wanted {
            Wanted::Image(name) => return Ok(Some(name.clone())),
            Wanted::Container { id, .. } => GetContainerRequest { id: id.clone() },
        };
        let answer = self.connection()?.call("containers.v1.Containers/Get", &request);
        let container = found::<GetContainerResponse>(answer)?.and_then(|answer| answer.container);
        Ok(container.map(|container| container.image).filter(|image| !image.is_empty()))
    }

    fn record(&self, name: String) -> Result<Option<ImageRecord>> {
        let answer = self.connection()?.call("images.v1.Images/Get", &GetImageRequest { name });
        Ok(found::<GetImageResponse>(answer)?.and_then(|answer| answer.image).map(Image::into))
    }

    /// Every image of the namespace.
    ///
    /// # Errors
    /// Unavailable without an answer.
    pub fn all(access: &Access) -> Result<Vec<ImageRecord>> {
        let answer = Connection::open(access)?.call("images.v1.Images/List", &ListImagesRequest::default());
        answer.map(|ListImagesResponse { images }| images.into_iter().map(Image::into).collect())
    }
}

/// The names of containerd's namespaces.
///
/// # Errors
/// Unavailable without an answer.
pub fn namespaces(access: &Access) -> Result<Vec<String>> {
    let answer = Connection::open(access)?.call("namespaces.v1.Namespaces/List", &ListNamespacesRequest::default());
    answer.map(|ListNamespacesResponse { namespaces }| namespaces.into_iter().map(|one| one.name).collect())
}

impl From<Image> for ImageRecord {
    fn from(image: Image) -> ImageRecord {
        let target = image.target.unwrap_or_default();
        let size = u64::try_from(target.size).unwrap_or_default();
        ImageRecord { name: image.name, labels: image.labels, target: target.digest, size }
    }
}

impl ImageStore for Images {
    fn image(&self) -> Result<Option<ImageRecord>> {
        if self.access.address.is_empty() {
            return Ok(None);
        }
        self.name()?.map_or(Ok(None), |name| self.record(name))
    }

    fn asked_for(&self) -> Result<Option<ImageRecord>> {
        match &self.wanted {
            Wanted::Container { image: Some(name), .. } => self.record(name.clone()),
            _ => Ok(None),
        }
    }

    fn read(&self, digest: &Digest, to: &mut dyn Write) -> Result<()> {
        let request = ReadContentRequest { digest: digest.to_string(), ..Default::default() };
        self.connection()?.stream("content.v1.Content/Read", &request, |answer: ReadContentResponse| {
            to.write_all(&answer.data).map_err(|error| Error::new(Kind::Unavailable, error))
        })
    }
}

/// The name of an image as containerd knows it, from a short one: of Docker Hub where it names no registry, and the latest where
/// it names no version.
fn full_name(name: &str) -> String {
    let is_registry = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let registry = match name.split_once('/') {
        Some((first, _)) if is_registry(first) => "",
        Some(_) => "docker.io/",
        None => "docker.io/library/",
    };
    let is_latest = !name.contains('@') && !name.rsplit('/').next().unwrap_or_default().contains(':');
    format!("{registry}{name}{}", if is_latest { ":latest" } else { "" })
}

/// What there is, if it is there.
fn found<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_docker_hub() {
        for (name, full) in [
            ("app", "docker.io/library/app:latest"),
            ("app:1", "docker.io/library/app:1"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/me/app:1", "localhost/me/app:1"),
            ("registry:5000/app", "registry:5000/app:latest"),
            ("example.com/app@sha256:00", "example.com/app@sha256:00"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }
}
