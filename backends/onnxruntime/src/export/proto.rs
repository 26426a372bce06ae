//! The part of ONNX's protobuf that a decoder needs, written by hand: eight messages and four wire forms.
//!
//! Field numbers are those of `onnx.proto3` (IR version 10). A generated codec would bring a compiler and ten thousand
//! lines for what is below.

/// `TensorProto.DataType` of the elements we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `FLOAT`.
    F32 = 1,
    /// `INT32`.
    I32 = 6,
    /// `INT64`.
    I64 = 7,
}

/// A message under construction: its encoded fields.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// The encoded bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    /// An integer field (negative ones in two's complement, as `int64` asks).
    #[must_use]
    pub fn int(mut self, field: u32, value: i64) -> Self {
        self.raw_varint(u64::from(field) << 3);
        self.raw_varint(value as u64);
        self
    }
    /// A `float` field.
    #[must_use]
    pub fn float(mut self, field: u32, value: f32) -> Self {
        self.raw_varint(u64::from(field) << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }
    /// A `string` or `bytes` field.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.raw_varint(u64::from(field) << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
    /// A field that is a message.
    #[must_use]
    pub fn message(self, field: u32, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
    /// A repeated field of messages.
    #[must_use]
    pub fn messages(self, field: u32, values: &[Message]) -> Self {
        values.iter().fold(self, |message, value| message.message(field, value))
    }
}

/// A node's attribute.
#[derive(Clone, Copy, Debug)]
pub enum Attribute {
    /// `INT`.
    Int(i64),
    /// `FLOAT`.
    Float(f32),
}

/// `NodeProto`. An empty input or output name means that it is left out.
pub fn node(
    domain: &str,
    op: &str,
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute)],
) -> Message {
    let mut node = Message::new();
    node = inputs.iter().fold(node, |node, input| node.bytes(1, input));
    node = outputs.iter().fold(node, |node, output| node.bytes(2, output));
    node = node.bytes(3, name).bytes(4, op);
    for (key, value) in attributes {
        let attribute = Message::new().bytes(1, key);
        let attribute = match *value {
            Attribute::Float(x) => attribute.float(2, x).int(20, 1),
            Attribute::Int(i) => attribute.int(3, i).int(20, 2),
        };
        node = node.message(5, &attribute);
    }
    node.bytes(7, domain)
}

/// A dimension: known, or a name that the runtime fills in.
#[derive(Clone, Copy, Debug)]
pub enum Dim<'a> {
    /// Known.
    Size(usize),
    /// Named.
    Name(&'a str),
}

/// `ValueInfoProto` of a tensor.
pub fn value_info(name: &str, element: Element, shape: &[Dim<'_>]) -> Message {
    let dims: Vec<Message> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Size(size) => Message::new().int(1, *size as i64),
            Dim::Name(name) => Message::new().bytes(2, name),
        })
        .collect();
    let tensor = Message::new().int(1, element as i64).message(2, &Message::new().messages(1, &dims));
    Message::new().bytes(1, name).message(2, &Message::new().message(1, &tensor))
}

fn tensor(name: &str, element: Element, shape: &[usize]) -> Message {
    let dims = shape.iter().fold(Message::new(), |message, &size| message.int(1, size as i64));
    dims.int(2, element as i64).bytes(8, name)
}

/// `TensorProto` with its values inside the model file.
pub fn inline_tensor(name: &str, element: Element, shape: &[usize], little_endian: &[u8]) -> Message {
    tensor(name, element, shape).bytes(9, little_endian)
}

/// `TensorProto` whose values lie in another file.
pub fn external_tensor(name: &str, element: Element, shape: &[usize], file: &str, offset: u64, length: u64) -> Message {
    let entry = |key: &str, value: &str| Message::new().bytes(1, key).bytes(2, value);
    tensor(name, element, shape)
        .message(13, &entry("location", file))
        .message(13, &entry("offset", &offset.to_string()))
        .message(13, &entry("length", &length.to_string()))
        // data_location = EXTERNAL
        .int(14, 1)
}

/// The parts of a `GraphProto`.
#[derive(Debug, Default)]
pub struct Graph {
    /// In topological order.
    pub nodes: Vec<Message>,
    /// Constant tensors.
    pub initializers: Vec<Message>,
    /// What is fed.
    pub inputs: Vec<Message>,
    /// What comes out.
    pub outputs: Vec<Message>,
}

/// `ModelProto` with opset 21 of ONNX and opset 1 of `com.microsoft`.
pub fn model(name: &str, graph: &Graph, metadata: &[(&str, String)]) -> Message {
    let body = Message::new()
        .messages(1, &graph.nodes)
        .bytes(2, name)
        .messages(5, &graph.initializers)
        .messages(11, &graph.inputs)
        .messages(12, &graph.outputs);
    let opset = |domain: &str, version: i64| Message::new().bytes(1, domain).int(2, version);
    let model = Message::new()
        .int(1, 10)
        .bytes(2, "karat")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, &body)
        .message(8, &opset("", 21))
        .message(8, &opset("com.microsoft", 1));
    metadata.iter().fold(model, |model, (key, value)| model.message(14, &Message::new().bytes(1, key).bytes(2, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_forms_are_protobufs() {
        // The examples of the encoding guide: field 1 = 150, field 2 = "testing"; and -1 takes ten bytes.
        assert_eq!(Message::new().int(1, 150).into_bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().bytes(2, "testing").into_bytes(), *b"\x12\x07testing");
        assert_eq!(Message::new().int(1, -1).into_bytes().len(), 11);
        assert_eq!(Message::new().float(2, 1.0).into_bytes(), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
