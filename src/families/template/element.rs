//! The types of elements and numbers that a kernel's arguments have.

use std::fmt;

/// The type of a tensor's elements, or of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision, a 16-bit word.
    F16,
    /// bfloat16, a 16-bit word.
    Bf16,
    /// IEEE double precision.
    F64,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits; booleans as well.
    U8,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
}

impl Element {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F64,
        Self::I8,
        Self::U8,
        Self::I16,
        Self::U16,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
    ];

    /// Its name: in a `.toml`, in a `.cu`, in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
        }
    }

    /// The type of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }

    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::F64)
    }

    /// The least and the most of an integer type; of `u64`, as much as an expression can hold.
    pub const fn range(self) -> Option<(i64, i64)> {
        match self {
            Self::I8 => Some((i8::MIN as i64, i8::MAX as i64)),
            Self::U8 => Some((0, u8::MAX as i64)),
            Self::I16 => Some((i16::MIN as i64, i16::MAX as i64)),
            Self::U16 => Some((0, u16::MAX as i64)),
            Self::I32 => Some((i32::MIN as i64, i32::MAX as i64)),
            Self::U32 => Some((0, u32::MAX as i64)),
            Self::I64 => Some((i64::MIN, i64::MAX)),
            Self::U64 => Some((0, i64::MAX)),
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 => None,
        }
    }

    /// Its number in [`Element::ALL`].
    pub(super) const fn id(self) -> i64 {
        self as i64
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_those_of_the_list() {
        for (i, e) in Element::ALL.into_iter().enumerate() {
            assert_eq!(e.id(), i as i64);
            assert_eq!(Element::of(e.name()), Some(e));
        }
        assert_eq!(Element::of("float"), None);
    }
}
