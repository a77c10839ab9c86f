//! The messages of containerd's API that are exchanged, with the fields that are used (containerd: api/services, api/types and
//! api/events).

use prost::{DecodeError, Message};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Message)]
pub struct GetContainerRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    pub container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// The name of the image.
    #[prost(string, tag = "3")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetImageRequest {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// Without filters all are meant.
#[derive(Clone, PartialEq, Message)]
pub struct ListImagesRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListNamespacesRequest {
    #[prost(string, tag = "1")]
    pub filter: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListNamespacesResponse {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Namespace {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    #[prost(string, tag = "2")]
    pub digest: String,
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// Without offset and size all of the content is meant.
#[derive(Clone, PartialEq, Message)]
pub struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub offset: i64,
    #[prost(int64, tag = "3")]
    pub size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadContentResponse {
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct InfoRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Info {
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ViewSnapshotRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
    #[prost(string, tag = "3")]
    pub parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ViewSnapshotResponse {
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RemoveSnapshotRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// ImageCreate and ImageUpdate.
#[derive(Clone, PartialEq, Message)]
struct ImageChange {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotCommit {
    #[prost(string, tag = "2")]
    name: String,
    /// Empty before containerd 2.0.
    #[prost(string, tag = "5")]
    snapshotter: String,
}

/// An event that is of interest here.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// An image was created, or is another than before.
    Image {
        namespace: String,
        name: String,
    },
    /// A layer was unpacked.
    Unpacked {
        namespace: String,
        chain: String,
        snapshotter: String,
    },
    Other,
}

impl TryFrom<Envelope> for Event {
    type Error = DecodeError;

    fn try_from(envelope: Envelope) -> Result<Event, DecodeError> {
        let Envelope { namespace, topic, event } = envelope;
        let event = event.unwrap_or_default().value;
        Ok(match topic.as_str() {
            "/images/create" | "/images/update" => {
                Event::Image { namespace, name: ImageChange::decode(event.as_slice())?.name }
            }
            "/snapshot/commit" => {
                let SnapshotCommit { name, snapshotter } = SnapshotCommit::decode(event.as_slice())?;
                Event::Unpacked { namespace, chain: name, snapshotter }
            }
            _ => Event::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let of = |topic: &str, value: Vec<u8>| {
            let (namespace, topic) = ("n".to_owned(), topic.to_owned());
            Event::try_from(Envelope { namespace, topic, event: Some(Any { value }) })
        };
        let image = ImageChange { name: "i".into() }.encode_to_vec();
        let expected = Event::Image { namespace: "n".into(), name: "i".into() };
        assert_eq!(of("/images/update", image).unwrap(), expected);
        let commit = SnapshotCommit { name: "c".into(), snapshotter: String::new() }.encode_to_vec();
        assert!(matches!(of("/snapshot/commit", commit).unwrap(), Event::Unpacked { chain, .. } if chain == "c"));
        assert_eq!(of("/tasks/exit", vec![255]).unwrap(), Event::Other);
        assert!(of("/images/create", vec![255]).is_err());
    }
}
