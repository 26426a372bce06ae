//! Protocol buffers as they are written, and the checksums that frame them: what two file formats
//! of trackers share.

/// A message under construction: fields in the order in which they are put.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// No field yet.
    pub fn new() -> Message {
        Message::default()
    }

    /// The encoded message.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// An `int32`, `int64` or `enum` field; 0 is what a field is that is left out.
    pub fn int(mut self, field: u32, value: i64) -> Message {
        if value == 0 {
            return self;
        }
        self.varint(u64::from(field << 3));
        // Negative numbers take ten bytes, as two's complement of 64 bits.
        self.varint(value.cast_unsigned());
        self
    }

    /// A `double` field.
    pub fn double(mut self, field: u32, value: f64) -> Message {
        self.varint(u64::from(field << 3 | 1));
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `float` field.
    pub fn float(mut self, field: u32, value: f32) -> Message {
        self.varint(u64::from(field << 3 | 5));
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `string` or `bytes` field.
    pub fn text(mut self, field: u32, value: impl AsRef<[u8]>) -> Message {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.as_ref().len() as u64);
        self.0.extend(value.as_ref());
        self
    }

    /// A field that is a message.
    pub fn message(self, field: u32, value: &Message) -> Message {
        self.text(field, value.bytes())
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A table of a reflected CRC-32, by its polynomial.
const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

static CASTAGNOLI: [u32; 256] = table(0x82F6_3B78);
static IEEE: [u32; 256] = table(0xEDB8_8320);

fn crc<'a>(table: &[u32; 256], bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |crc, byte| table[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

/// CRC-32C (Castagnoli).
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc(&CASTAGNOLI, bytes.iter())
}

/// CRC-32 of zlib, over `parts` one after the other.
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    crc(&IEEE, parts.iter().copied().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_catalogue() {
        // The check values of CRC-32/ISCSI and CRC-32/ISO-HDLC in the catalogue of parametrised CRCs.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0xCBF4_3926);
    }

    #[test]
    fn numbers_are_the_varints_of_the_encoding_guide() {
        // "Test1 message with a set to 150", of the protocol buffers documentation.
        assert_eq!(Message::new().int(1, 150).bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().text(2, "testing").bytes(), *b"\x12\x07testing");
        assert_eq!(Message::new().int(1, -1).bytes().len(), 11);
    }
}
