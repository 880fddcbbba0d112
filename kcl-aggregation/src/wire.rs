//! Protobuf's wire format over a slice: one field after the other, nothing copied, nothing recursive.
//!
//! Keys and variable-length integers are decoded by `prost`, but for the short ones, which are nearly all: without those calls the walk
//! takes a quarter less time. What else stands here is only how to step from one field to the next. It uses prost's `encoding`
//! module, which its derive macro's output calls too, in this one file.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::error::Malformed;

/// Unknown groups within unknown groups are skipped up to this depth, without recursion. The format itself has no groups.
const MAX_GROUP_DEPTH: usize = 32;

/// A place in a message, or in a message within a message.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

/// One field's number and value.
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
}

/// A field's value, as far as this format is concerned.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a type that the format has no use for; stepped over.
    Other,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next field, if the message is not at its end.
    #[inline]
    pub(crate) fn field(&mut self) -> Option<Result<Field<'a>, Malformed>> {
        if self.rest.is_empty() { None } else { Some(self.read_field()) }
    }

    #[inline]
    fn read_field(&mut self) -> Result<Field<'a>, Malformed> {
        let (number, wire_type) = self.key()?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(self.varint()?),
            WireType::LengthDelimited => Value::Bytes(self.delimited()?),
            WireType::StartGroup => {
                self.skip_group(number)?;
                Value::Other
            }
            WireType::SixtyFourBit | WireType::ThirtyTwoBit | WireType::EndGroup => {
                self.skip(wire_type)?;
                Value::Other
            }
        };
        Ok(Field { number, value })
    }

    #[inline]
    fn key(&mut self) -> Result<(u32, WireType), Malformed> {
        match self.rest {
            // Of one byte, as all of the format are.
            [byte @ 0x08..0x80, rest @ ..] => {
                self.rest = rest;
                let wire_type = WireType::try_from(u64::from(byte & 7)).map_err(|_| Malformed::Key)?;
                Ok((u32::from(byte >> 3), wire_type))
            }
            _ => decode_key(&mut self.rest).map_err(|_| Malformed::Key),
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match self.rest {
            // Most are short.
            [byte @ 0..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            [low, high @ 0..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(*high) << 7)
            }
            _ => decode_varint(&mut self.rest).map_err(|_| Malformed::Varint),
        }
    }

    /// A length, and that many bytes.
    #[inline]
    pub(crate) fn delimited(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.varint()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Steps over a value that is no group's.
    fn skip(&mut self, wire_type: WireType) -> Result<(), Malformed> {
        match wire_type {
            WireType::Varint => self.varint().map(|_| ()),
            WireType::SixtyFourBit => self.take(8).map(|_| ()),
            WireType::ThirtyTwoBit => self.take(4).map(|_| ()),
            WireType::LengthDelimited => self.delimited().map(|_| ()),
            WireType::StartGroup | WireType::EndGroup => Err(Malformed::EndGroup),
        }
    }

    /// Steps over the rest of a group, and over the groups in it.
    #[cold]
    fn skip_group(&mut self, number: u32) -> Result<(), Malformed> {
        let mut open = [0; MAX_GROUP_DEPTH];
        open[0] = number;
        let mut depth = 1;
        while depth > 0 {
            match self.key()? {
                (number, WireType::StartGroup) => {
                    *open.get_mut(depth).ok_or(Malformed::TooDeep)? = number;
                    depth += 1;
                }
                (number, WireType::EndGroup) if number == open[depth - 1] => depth -= 1,
                (_, wire_type) => self.skip(wire_type)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8]) -> Result<Vec<u32>, Malformed> {
        let mut cursor = Cursor::new(bytes);
        std::iter::from_fn(|| cursor.field()).map(|field| field.map(|field| field.number)).collect()
    }

    #[test]
    fn fields_of_all_types_are_stepped_over() {
        let fields: &[&[u8]] = &[
            &[0x08, 0xff, 0x01],                               // 1: a number
            &[0x11, 1, 2, 3, 4, 5, 6, 7, 8],                   // 2: eight bytes
            &[0x1a, 2, 0xff, 0xff],                            // 3: bytes
            &[0x25, 1, 2, 3, 4],                               // 4: four bytes
            &[0x2b, 0x33, 0x08, 0x01, 0x34, 0x1a, 1, 7, 0x2c], // 5: a group with a group (6), a number and bytes
            &[0xf8, 0xff, 0xff, 0xff, 0x0f, 0x00],             // the highest number that there is
        ];
        assert_eq!(walk(&fields.concat()), Ok(vec![1, 2, 3, 4, 5, (1 << 29) - 1]));
        assert_eq!(walk(&[]), Ok(vec![]));
    }

    #[test]
    fn what_is_no_protobuf_is_refused() {
        let table: &[(&[u8], Malformed)] = &[
            (&[0x00, 0x00], Malformed::Key),                                                          // field number 0
            (&[0x0e], Malformed::Key),                                                                // wire type 6
            (&[0x0f], Malformed::Key),                                                                // wire type 7
            (&[0x80], Malformed::Key),                                                                // cut off
            (&[0x80, 0x80, 0x80, 0x80, 0x10, 0x00], Malformed::Key),                                  // more than 32 bits
            (&[0x08], Malformed::Varint),                                                             // no number
            (&[0x08, 0xff, 0xff], Malformed::Varint),                                                 // cut off
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], Malformed::Varint), // 65 bits
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 0x00], Malformed::Varint), // eleven bytes
            (&[0x0a, 2, 1], Malformed::Truncated),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Malformed::Truncated), // 2^64-1 bytes
            (&[0x09, 1, 2, 3, 4, 5, 6, 7], Malformed::Truncated),
            (&[0x0d, 1, 2, 3], Malformed::Truncated),
            (&[0x0c], Malformed::EndGroup),        // ends what was not begun
            (&[0x0b, 0x14], Malformed::EndGroup),  // ends another one
            (&[0x0b, 0x08, 0x01], Malformed::Key), // never ends
        ];
        for (bytes, expected) in table {
            assert_eq!(walk(bytes), Err(*expected), "{bytes:02x?}");
        }
    }

    #[test]
    fn groups_are_nested_to_a_limit() {
        let nested = |depth| [vec![0x0b; depth], vec![0x0c; depth]].concat();
        assert_eq!(walk(&nested(MAX_GROUP_DEPTH)), Ok(vec![1]));
        assert_eq!(walk(&nested(MAX_GROUP_DEPTH + 1)), Err(Malformed::TooDeep));
        assert_eq!(walk(&vec![0x0b; 1 << 20]), Err(Malformed::TooDeep));
    }
}
