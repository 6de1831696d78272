//! The messages of an ONNX file, as far as this crate writes them, and a graph that grows node by node. Names and
//! numbers of the fields are those of onnx.proto: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.

use prost::{Message, Oneof};

/// `ir_version` of files with this version of the operators: <https://onnx.ai/onnx/repo-docs/Versioning.html>.
const IR_VERSION: i64 = 8;
const OPERATORS: i64 = 17;

/// The types of tensors, as numbers of `TensorProto.DataType`.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Float = 1,
    Byte = 2,
    Int8 = 3,
    Int32 = 6,
    Long = 7,
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = 1)]
    ir_version: i64,
    #[prost(string, tag = 2)]
    producer_name: String,
    #[prost(string, tag = 3)]
    producer_version: String,
    #[prost(message, optional, tag = 7)]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = 8)]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = 14)]
    metadata_props: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(int64, tag = 2)]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = 1)]
    key: String,
    #[prost(string, tag = 2)]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = 1)]
    node: Vec<NodeProto>,
    #[prost(string, tag = 2)]
    name: String,
    #[prost(message, repeated, tag = 5)]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = 11)]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = 12)]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = 1)]
    input: Vec<String>,
    #[prost(string, repeated, tag = 2)]
    output: Vec<String>,
    #[prost(string, tag = 3)]
    name: String,
    #[prost(string, tag = 4)]
    op_type: String,
    #[prost(message, repeated, tag = 5)]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = 1)]
    name: String,
    #[prost(float, optional, tag = 2)]
    f: Option<f32>,
    #[prost(int64, optional, tag = 3)]
    i: Option<i64>,
    #[prost(int64, repeated, tag = 8)]
    ints: Vec<i64>,
    #[prost(int32, tag = 20)]
    r#type: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = 1)]
    dims: Vec<i64>,
    #[prost(int32, tag = 2)]
    data_type: i32,
    #[prost(string, tag = 8)]
    name: String,
    #[prost(bytes = "vec", tag = 9)]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = 1)]
    name: String,
    #[prost(message, optional, tag = 2)]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = 1)]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = 1)]
    elem_type: i32,
    #[prost(message, optional, tag = 2)]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = 1)]
    dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct DimensionProto {
    #[prost(oneof = "Dim", tags = "1, 2")]
    value: Option<Dim>,
}

/// One side of a tensor: fixed, or named and known only when the file is used.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Dim {
    #[prost(int64, tag = 1)]
    Fixed(i64),
    #[prost(string, tag = 2)]
    Named(String),
}

/// A setting of a node.
pub(super) enum Setting<'a> {
    Int(i64),
    Float(f32),
    Ints(&'a [i64]),
}

/// A graph to which nodes are appended in the order in which they run. Tensors are known by their names.
#[derive(Default)]
pub(super) struct Graph(GraphProto);

impl Graph {
    pub(super) fn new(name: &str) -> Self {
        Self(GraphProto { name: name.to_owned(), ..Default::default() })
    }

    /// Appends a node with one output and returns the name of that output: `name`, with a number where it is empty or
    /// another node has it.
    pub(super) fn node(&mut self, name: &str, op: &str, inputs: &[&str], settings: &[(&str, Setting)]) -> String {
        let output = match name {
            "" => format!("{op}_{}", self.0.node.len()),
            name if self.0.node.iter().any(|node| node.name == name) => format!("{name}_{}", self.0.node.len()),
            name => name.to_owned(),
        };
        let attribute = settings.iter().map(|(name, setting)| attribute(name, setting)).collect();
        self.0.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.clone()],
            name: output.clone(),
            op_type: op.to_owned(),
            attribute,
        });
        output
    }

    /// Appends a constant and returns its name, as [`Graph::node`] does; `raw` holds its values in little-endian order.
    pub(super) fn constant(&mut self, name: &str, kind: Type, dims: &[i64], raw: Vec<u8>) -> String {
        let number = self.0.initializer.len();
        let name = match name {
            "" => format!("constant_{number}"),
            name if self.0.initializer.iter().any(|tensor| tensor.name == name) => format!("{name}_{number}"),
            name => name.to_owned(),
        };
        let tensor = TensorProto { dims: dims.to_owned(), data_type: kind as i32, name: name.clone(), raw_data: raw };
        self.0.initializer.push(tensor);
        name
    }

    /// A constant of this shape.
    pub(super) fn floats(&mut self, dims: &[i64], values: &[f32]) -> String {
        self.constant("", Type::Float, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// A list of whole numbers.
    pub(super) fn longs(&mut self, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant("", Type::Long, &[values.len() as i64], raw)
    }

    /// A single whole number, as a tensor without dimensions.
    pub(super) fn long(&mut self, value: i64) -> String {
        self.constant("", Type::Long, &[], value.to_le_bytes().to_vec())
    }

    /// Declares an input of the graph.
    pub(super) fn input(&mut self, name: &str, kind: Type, dims: Vec<Dim>) {
        self.0.input.push(value(name, kind, dims));
    }

    /// Declares the output of a node as an output of the graph.
    pub(super) fn output(&mut self, name: &str, kind: Type, dims: Vec<Dim>) {
        self.0.output.push(value(name, kind, dims));
    }

    /// The bytes of a file with this graph and these texts as metadata.
    pub(super) fn file(self, metadata: impl IntoIterator<Item = (String, String)>) -> Vec<u8> {
        let mut entries: Vec<_> =
            metadata.into_iter().map(|(key, value)| StringStringEntryProto { key, value }).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.0),
            opset_import: vec![OperatorSetIdProto { version: OPERATORS }],
            metadata_props: entries,
        };
        model.encode_to_vec()
    }
}

fn attribute(name: &str, setting: &Setting) -> AttributeProto {
    let name = name.to_owned();
    match *setting {
        Setting::Float(f) => AttributeProto { name, f: Some(f), r#type: 1, ..Default::default() },
        Setting::Int(i) => AttributeProto { name, i: Some(i), r#type: 2, ..Default::default() },
        Setting::Ints(ints) => AttributeProto { name, ints: ints.to_owned(), r#type: 7, ..Default::default() },
    }
}

fn value(name: &str, kind: Type, dims: Vec<Dim>) -> ValueInfoProto {
    let dim = dims.into_iter().map(|dim| DimensionProto { value: Some(dim) }).collect();
    let tensor = TensorTypeProto { elem_type: kind as i32, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
