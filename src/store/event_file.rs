//! The file format of TensorBoard: TFRecords, each of which holds a message of event.proto. Names and numbers of the
//! fields: <https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto>.

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A value of a curve.
pub(crate) struct Point {
    /// Name of the curve.
    pub tag: &'static str,
    pub step: i64,
    /// Seconds since 1970.
    pub wall_time: f64,
    pub value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = 1)]
    wall_time: f64,
    #[prost(int64, tag = 2)]
    step: i64,
    #[prost(string, optional, tag = 3)]
    file_version: Option<String>,
    #[prost(message, optional, tag = 5)]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = 1)]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = 1)]
    tag: String,
    // Present even if it is 0.
    #[prost(float, optional, tag = 2)]
    simple_value: Option<f32>,
}

/// The bytes of an event file with these points.
pub(crate) fn event_file(points: &[Point]) -> Vec<u8> {
    let wall_time = points.first().map_or(0.0, |point| point.wall_time);
    let version = Event { wall_time, file_version: Some("brain.Event:2".into()), ..Event::default() };
    let events = points.iter().map(|point| {
        let value = Value { tag: point.tag.into(), simple_value: Some(point.value as f32) };
        let summary = Some(Summary { value: vec![value] });
        Event { wall_time: point.wall_time, step: point.step, summary, ..Event::default() }
    });
    std::iter::once(version).chain(events).flat_map(|event| record(&event.encode_to_vec())).collect()
}

/// A TFRecord: the length of the content, its checksum, the content, and the content's checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked_checksum(&length), content, &masked_checksum(content)].concat()
}

/// CRC-32C, rotated and shifted, so that a checksum of data that holds checksums is no trivial one.
fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
