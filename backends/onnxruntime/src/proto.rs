//! The part of ONNX's protobuf that a decoder needs, written by hand: eight messages and four wire
//! forms.
//!
//! Field numbers are those of `onnx.proto3` (IR version 10). A generated codec would bring a
//! compiler and ten thousand lines for what is below.

/// `TensorProto.DataType` of the elements we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// `FLOAT`.
    F32 = 1,
    /// `UINT8`.
    U8 = 2,
    /// `INT32`.
    I32 = 6,
    /// `INT64`.
    I64 = 7,
    /// `FLOAT16`.
    F16 = 10,
    /// `BFLOAT16`.
    Bf16 = 16,
}

impl DataType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DataType::U8 => 1,
            DataType::F16 | DataType::Bf16 => 2,
            DataType::F32 | DataType::I32 => 4,
            DataType::I64 => 8,
        }
    }
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            DataType::F32 => "f32",
            DataType::U8 => "u8",
            DataType::I32 => "i32",
            DataType::I64 => "i64",
            DataType::F16 => "f16",
            DataType::Bf16 => "bf16",
        }
    }
}

/// A message under construction: its encoded fields.
#[derive(Clone, Debug, Default)]
pub struct ProtoMessage(Vec<u8>);

impl ProtoMessage {
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
    pub fn message(self, field: u32, value: &ProtoMessage) -> Self {
        self.bytes(field, &value.0)
    }
    /// A repeated field of messages.
    #[must_use]
    pub fn messages(self, field: u32, values: &[ProtoMessage]) -> Self {
        values.iter().fold(self, |message, value| message.message(field, value))
    }
}

/// A node's attribute.
#[derive(Clone, Copy, Debug)]
pub enum Attribute<'a> {
    /// `INT`.
    Int(i64),
    /// `INTS`.
    Ints(&'a [i64]),
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
    attributes: &[(&str, Attribute<'_>)],
) -> ProtoMessage {
    let mut node = ProtoMessage::new();
    node = inputs.iter().fold(node, |node, input| node.bytes(1, input));
    node = outputs.iter().fold(node, |node, output| node.bytes(2, output));
    node = node.bytes(3, name).bytes(4, op);
    for (key, value) in attributes {
        let attribute = ProtoMessage::new().bytes(1, key);
        let attribute = match *value {
            Attribute::Float(x) => attribute.float(2, x).int(20, 1),
            Attribute::Int(i) => attribute.int(3, i).int(20, 2),
            Attribute::Ints(list) => list.iter().fold(attribute, |attribute, &i| attribute.int(8, i)).int(20, 7),
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
pub fn value_info(name: &str, element: DataType, shape: &[Dim<'_>]) -> ProtoMessage {
    let dims: Vec<ProtoMessage> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Size(size) => ProtoMessage::new().int(1, *size as i64),
            Dim::Name(name) => ProtoMessage::new().bytes(2, name),
        })
        .collect();
    let tensor = ProtoMessage::new().int(1, element as i64).message(2, &ProtoMessage::new().messages(1, &dims));
    ProtoMessage::new().bytes(1, name).message(2, &ProtoMessage::new().message(1, &tensor))
}

fn tensor(name: &str, element: DataType, shape: &[usize]) -> ProtoMessage {
    let dims = shape.iter().fold(ProtoMessage::new(), |message, &size| message.int(1, size as i64));
    dims.int(2, element as i64).bytes(8, name)
}

/// `TensorProto` with its values inside the model file.
pub fn inline_tensor(name: &str, element: DataType, shape: &[usize], little_endian: &[u8]) -> ProtoMessage {
    tensor(name, element, shape).bytes(9, little_endian)
}

/// `TensorProto` whose values lie in another file.
pub fn external_tensor(
    name: &str,
    element: DataType,
    shape: &[usize],
    file: &str,
    offset: u64,
    length: u64,
) -> ProtoMessage {
    let entry = |key: &str, value: &str| ProtoMessage::new().bytes(1, key).bytes(2, value);
    tensor(name, element, shape)
        .message(13, &entry("location", file))
        .message(13, &entry("offset", &offset.to_string()))
        .message(13, &entry("length", &length.to_string()))
        // data_location = EXTERNAL
        .int(14, 1)
}

/// The parts of a `GraphProto`.
#[derive(Debug, Default)]
pub struct OnnxGraph {
    /// In topological order.
    pub nodes: Vec<ProtoMessage>,
    /// Constant tensors.
    pub initializers: Vec<ProtoMessage>,
    /// Inputs.
    pub inputs: Vec<ProtoMessage>,
    /// Outputs.
    pub outputs: Vec<ProtoMessage>,
    /// A set of operators beside those of every model: domain and version.
    pub operators: Option<(&'static str, u64)>,
}

/// `ModelProto` with opset 21 of ONNX, opset 1 of `com.microsoft` and the graph's own.
pub fn model(name: &str, graph: &OnnxGraph, metadata: &[(&str, String)]) -> ProtoMessage {
    let body = ProtoMessage::new()
        .messages(1, &graph.nodes)
        .bytes(2, name)
        .messages(5, &graph.initializers)
        .messages(11, &graph.inputs)
        .messages(12, &graph.outputs);
    let opset = |domain: &str, version: i64| ProtoMessage::new().bytes(1, domain).int(2, version);
    let model = ProtoMessage::new()
        .int(1, IR_VERSION as i64)
        .bytes(2, "karat")
        .bytes(3, env!("CARGO_PKG_VERSION"))
        .message(7, &body)
        .messages(8, &OPSETS.map(|(domain, version)| opset(domain, version as i64)));
    let model = match graph.operators {
        Some((domain, version)) => model.message(8, &opset(domain, version as i64)),
        None => model,
    };
    metadata
        .iter()
        .fold(model, |model, (key, value)| model.message(14, &ProtoMessage::new().bytes(1, key).bytes(2, value)))
}

/// The IR version and the versions of operator sets that are written.
const IR_VERSION: u64 = 10;
const OPSETS: [(&str, u64); 2] = [("", 21), ("com.microsoft", 1)];

/// Reads the IR version and the operator sets of an encoded model and compares them with what is
/// written here.
///
/// # Errors
/// The opsets that were found instead, or that the bytes are no whole `ModelProto`.
pub fn check_opsets(model: &[u8]) -> Result<(), String> {
    let no_model = || "it is no whole ONNX model".to_string();
    let (mut ir, mut opsets) = (None, Vec::new());
    for field in Fields(model) {
        match field.ok_or_else(no_model)? {
            (1, Field::Int(version)) => ir = Some(version),
            (8, Field::Bytes(bytes)) => {
                let (mut domain, mut version) = (String::new(), 0);
                for field in Fields(bytes) {
                    match field.ok_or_else(no_model)? {
                        (1, Field::Bytes(name)) => domain = String::from_utf8_lossy(name).into_owned(),
                        (2, Field::Int(n)) => version = n,
                        _ => {}
                    }
                }
                opsets.push((domain, version));
            }
            _ => {}
        }
    }
    if ir != Some(IR_VERSION) {
        return Err(format!("its IR version is {}, {IR_VERSION} is needed", ir.unwrap_or_default()));
    }
    for (domain, needed) in OPSETS {
        let name = if domain.is_empty() { "ai.onnx" } else { domain };
        match opsets.iter().find(|(found, _)| found == domain) {
            Some((_, version)) if *version == needed => {}
            Some((_, version)) => return Err(format!("its opset of {name} is {version}, {needed} is needed")),
            None => return Err(format!("it has no opset of {name}, {needed} is needed")),
        }
    }
    Ok(())
}

/// Whether every tensor that lies outside `model`, an encoded `ModelProto`, lies in the file `data`
/// beside it: a model from elsewhere must not make the runtime read other files.
///
/// # Errors
/// Where one lies instead, or that the bytes are no whole `ModelProto`.
pub fn check_external_data(model: &[u8], data: &str) -> Result<(), String> {
    // Fields of ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto that lead to
    // tensors, by onnx.proto.
    const MODEL: &[(u64, Part)] = &[(7, Part::OnnxGraph)];
    const GRAPH: &[(u64, Part)] = &[(1, Part::Node), (5, Part::Tensor), (15, Part::Sparse)];
    const NODE: &[(u64, Part)] = &[(5, Part::Attribute)];
    const ATTRIBUTE: &[(u64, Part)] = &[
        (5, Part::Tensor),
        (6, Part::OnnxGraph),
        (10, Part::Tensor),
        (11, Part::OnnxGraph),
        (22, Part::Sparse),
        (23, Part::Sparse),
    ];
    const SPARSE: &[(u64, Part)] = &[(1, Part::Tensor), (2, Part::Tensor)];
    const TENSOR: &[(u64, Part)] = &[(13, Part::Entry)];
    #[derive(Clone, Copy)]
    enum Part {
        OnnxGraph,
        Node,
        Attribute,
        Tensor,
        Sparse,
        Entry,
    }
    let no_model = || "it is no whole ONNX model".to_string();
    let mut left = vec![(model, MODEL)];
    while let Some((bytes, inside)) = left.pop() {
        for field in Fields(bytes) {
            let (number, Field::Bytes(bytes)) = field.ok_or_else(no_model)? else { continue };
            let Some((_, part)) = inside.iter().find(|(n, _)| *n == number) else { continue };
            match part {
                Part::OnnxGraph => left.push((bytes, GRAPH)),
                Part::Node => left.push((bytes, NODE)),
                Part::Attribute => left.push((bytes, ATTRIBUTE)),
                Part::Tensor => left.push((bytes, TENSOR)),
                Part::Sparse => left.push((bytes, SPARSE)),
                Part::Entry => {
                    let (mut key, mut value) = (&b""[..], &b""[..]);
                    for field in Fields(bytes) {
                        match field.ok_or_else(no_model)? {
                            (1, Field::Bytes(bytes)) => key = bytes,
                            (2, Field::Bytes(bytes)) => value = bytes,
                            _ => {}
                        }
                    }
                    if key == b"location" && value != data.as_bytes() {
                        let place = String::from_utf8_lossy(value);
                        return Err(format!("a tensor of it lies in {place:?}, not in {data} beside it"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// The value of an encoded field.
enum Field<'a> {
    Int(u64),
    Bytes(&'a [u8]),
    StaticBuffers,
}

/// The fields of an encoded message in order; `None` once the bytes make no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Int(self.varint()?),
            1 => self.take(8).map(|_| Field::StaticBuffers)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::StaticBuffers)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // Nothing after a broken field can be trusted.
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_opset_is_named_and_a_part_of_a_model_is_none() {
        let good = model("g", &OnnxGraph::default(), &[("key", "value".into())]).into_bytes();
        assert_eq!(check_opsets(&good), Ok(()));
        assert!((1..good.len()).all(|length| check_opsets(&good[..length]).is_err() || length > good.len() - 20));
        let opset = |domain: &str, version| ProtoMessage::new().bytes(1, domain).int(2, version);
        let other = ProtoMessage::new().int(1, 10).message(8, &opset("", 23)).message(8, &opset("com.microsoft", 1));
        assert_eq!(check_opsets(&other.into_bytes()), Err("its opset of ai.onnx is 23, 21 is needed".into()));
        let missing = ProtoMessage::new().int(1, 10).message(8, &opset("", 21));
        assert!(check_opsets(&missing.into_bytes()).unwrap_err().contains("com.microsoft"));
        let old = ProtoMessage::new().int(1, 8);
        assert!(check_opsets(&old.into_bytes()).unwrap_err().contains("IR version is 8"));
    }

    #[test]
    fn a_tensor_that_lies_in_another_file_is_found_wherever_it_stands() {
        let entry = |key: &str, value: &str| ProtoMessage::new().bytes(1, key).bytes(2, value);
        let tensor =
            |place: &str| ProtoMessage::new().message(13, &entry("length", "8")).message(13, &entry("location", place));
        let of_graph = |graph: ProtoMessage| ProtoMessage::new().int(1, 10).message(7, &graph).into_bytes();
        let in_initializer = |place: &str| of_graph(ProtoMessage::new().message(5, &tensor(place)));
        assert_eq!(check_external_data(&in_initializer("model.onnx.data"), "model.onnx.data"), Ok(()));
        for place in ["../model.onnx.data", "/etc/passwd", "other", ""] {
            let said = check_external_data(&in_initializer(place), "model.onnx.data").unwrap_err();
            assert!(said.contains(&format!("{place:?}")), "{said}");
        }
        // In a constant of a branch of a node.
        let constant = ProtoMessage::new().message(5, &ProtoMessage::new().message(5, &tensor("/etc/passwd")));
        let branch = ProtoMessage::new().message(6, &ProtoMessage::new().message(1, &constant));
        let model = of_graph(ProtoMessage::new().message(1, &ProtoMessage::new().message(5, &branch)));
        assert!(check_external_data(&model, "model.onnx.data").unwrap_err().contains("/etc/passwd"));
        assert!(check_external_data(&model[..model.len() - 1], "model.onnx.data").is_err());
    }

    #[test]
    fn wire_forms_are_protobufs() {
        // The examples of the encoding guide: field 1 = 150, field 2 = "testing"; and -1 takes ten
        // bytes.
        assert_eq!(ProtoMessage::new().int(1, 150).into_bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(ProtoMessage::new().bytes(2, "testing").into_bytes(), *b"\x12\x07testing");
        assert_eq!(ProtoMessage::new().int(1, -1).into_bytes().len(), 11);
        assert_eq!(ProtoMessage::new().float(2, 1.0).into_bytes(), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
