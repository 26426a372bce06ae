//! A reader of event files and run folders that shares no code with their writers, for tests.

#![allow(dead_code, clippy::unwrap_used, reason = "tests of two crates use some of it")]

use std::path::{Path, PathBuf};

/// A field of a protocol buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    Int(i64),
    Double(f64),
    Float(f32),
    Bytes(Vec<u8>),
}

/// The fields of a message, in order.
pub fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        panic!("a varint of more than ten bytes");
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let taken = |bytes: &mut &[u8], count: usize| {
            let (taken, rest) = bytes.split_at(count);
            *bytes = rest;
            taken.to_vec()
        };
        let field = match key & 7 {
            0 => Field::Int(varint(&mut bytes) as i64),
            1 => Field::Double(f64::from_le_bytes(taken(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(taken(&mut bytes, length))
            }
            5 => Field::Float(f32::from_le_bytes(taken(&mut bytes, 4).try_into().unwrap())),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    found
}

/// The first field of that number, as a message or a text.
pub fn bytes(message: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(message).into_iter().find_map(|(n, field)| match field {
        Field::Bytes(bytes) if n == number => Some(bytes),
        _ => None,
    })
}

pub fn text(message: &[u8], number: u64) -> Option<String> {
    Some(String::from_utf8(bytes(message, number)?).unwrap())
}

pub fn int(message: &[u8], number: u64) -> Option<i64> {
    fields(message).into_iter().find_map(|(n, field)| match field {
        Field::Int(value) if n == number => Some(value),
        _ => None,
    })
}

/// Bit by bit, reflected.
fn crc(polynomial: u32, bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ polynomial } else { crc >> 1 };
        }
    }
    !crc
}

/// What a tracker shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    Scalar {
        tag: String,
        step: i64,
        value: f64,
    },
    Text {
        tag: String,
        step: i64,
        text: String,
    },
    /// A `SessionLog.START` of an event file.
    Start(i64),
    /// How a run of SwanLab ended.
    Ended(i64, Option<String>),
    /// The first record: its version, or the run's name.
    Begin(String),
    /// The column of a key, the settings' place.
    Other(String),
}

/// The records of an event file, up to one that was cut short.
pub fn event_file(path: &Path) -> Vec<Shown> {
    let file = std::fs::read(path).unwrap();
    let (mut rest, mut shown) = (file.as_slice(), Vec::new());
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let masked = |bytes: &[u8]| crc(0x82F6_3B78, bytes).rotate_right(15).wrapping_add(0xA282_EAD8);
    while rest.len() >= 12 {
        assert_eq!(u32_at(rest, 8), masked(&rest[..8]), "the checksum of a length");
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        if rest.len() < length + 16 {
            break;
        }
        let event = &rest[12..12 + length];
        assert_eq!(u32_at(rest, 12 + length), masked(event), "the checksum of an event");
        shown.extend(event_of(event));
        rest = &rest[length + 16..];
    }
    shown
}

fn event_of(event: &[u8]) -> Vec<Shown> {
    let step = int(event, 2).unwrap_or(0);
    if let Some(version) = text(event, 3) {
        return vec![Shown::Begin(version)];
    }
    if let Some(log) = bytes(event, 7) {
        assert_eq!(int(&log, 1), Some(1), "a status other than START");
        return vec![Shown::Start(step)];
    }
    let values = fields(&bytes(event, 5).unwrap());
    let value = |(_, field): &(u64, Field)| {
        let Field::Bytes(value) = field else { panic!("{field:?}") };
        let tag = text(value, 1).unwrap();
        let number = fields(value).into_iter().find_map(|(_, field)| match field {
            Field::Float(number) => Some(number),
            _ => None,
        });
        match number {
            Some(number) => Shown::Scalar { tag, step, value: f64::from(number) },
            None => {
                let plugin = bytes(&bytes(value, 9).unwrap(), 1).unwrap();
                assert_eq!(text(&plugin, 1).unwrap(), "text");
                Shown::Text { tag, step, text: text(&bytes(value, 8).unwrap(), 8).unwrap() }
            }
        }
    };
    values.iter().map(value).collect()
}

/// The payloads of a file in SwanLab's log format, up to one that was cut short.
pub fn log_records(file: &[u8]) -> Vec<Vec<u8>> {
    const BLOCK: usize = 32_768;
    assert_eq!(&file[..7], b":SWL\xD6\xE1\x02");
    let (mut at, mut records, mut pieces) = (7, Vec::new(), None::<Vec<u8>>);
    loop {
        let room = BLOCK - at % BLOCK;
        if room < 7 {
            assert!(file[at..].iter().take(room).all(|byte| *byte == 0), "padding");
            at += room;
        }
        let Some(header) = file.get(at..at + 7) else { return records };
        let length = usize::from(u16::from_le_bytes(header[4..6].try_into().unwrap()));
        let Some(piece) = file.get(at + 7..at + 7 + length) else { return records };
        let kind = header[6];
        assert!(at % BLOCK + 7 + length <= BLOCK, "a piece over the end of a block");
        let sum = u32::from_le_bytes(header[..4].try_into().unwrap());
        assert_eq!(sum, crc(0xEDB8_8320, &[&[kind], piece].concat()), "the checksum of a piece");
        at += 7 + length;
        match (kind, pieces.take()) {
            (1, None) => records.push(piece.to_vec()),
            (2, None) => pieces = Some(piece.to_vec()),
            (3, Some(before)) => pieces = Some([before, piece.to_vec()].concat()),
            (4, Some(before)) => records.push([before, piece.to_vec()].concat()),
            (kind, before) => panic!("a piece of kind {kind} after {before:?}"),
        }
    }
}

/// What a run folder of SwanLab's shows; texts are read from its media.
pub fn run_folder(folder: &Path) -> Vec<Shown> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let runs: Vec<&PathBuf> = files.iter().filter(|path| path.extension().is_some_and(|e| e == "swanlab")).collect();
    assert_eq!(runs.len(), 1, "{files:?}");
    let mut rows = 0;
    let mut shown = Vec::new();
    for record in log_records(&std::fs::read(runs[0]).unwrap()) {
        let number = int(&record, 1).unwrap();
        assert!(bytes(&record, 2).is_some(), "a record without a time");
        if number > 0 {
            assert_eq!(number, rows + 1, "rows are counted");
            rows = number;
        }
        let (kind, Field::Bytes(data)) = fields(&record).into_iter().find(|(n, _)| *n >= 10).unwrap() else {
            panic!("a record that is no message")
        };
        match kind {
            10 => shown.push(Shown::Begin(text(&data, 4).unwrap())),
            11 => shown.push(Shown::Ended(int(&data, 1).unwrap(), text(&data, 2))),
            12 => shown.push(Shown::Other(text(&data, 3).unwrap())),
            13 => {
                let number = fields(&bytes(&data, 5).unwrap()).remove(0);
                let (1, Field::Double(value)) = number else { panic!("{number:?}") };
                shown.push(Shown::Scalar { tag: text(&data, 1).unwrap(), step: int(&data, 2).unwrap_or(0), value });
            }
            14 => {
                for (_, item) in fields(&bytes(&data, 5).unwrap()) {
                    let Field::Bytes(item) = item else { panic!("{item:?}") };
                    let path = folder.join("media/text").join(text(&item, 1).unwrap());
                    let tag = format!("{}/{}", text(&data, 1).unwrap(), text(&item, 4).unwrap());
                    let text = std::fs::read_to_string(path).unwrap();
                    assert_eq!(int(&item, 3).unwrap_or(0), text.len() as i64);
                    shown.push(Shown::Text { tag, step: int(&data, 2).unwrap_or(0), text });
                }
            }
            20 => shown.push(Shown::Other(text(&data, 2).unwrap())),
            other => panic!("a record of kind {other}"),
        }
    }
    shown
}
