//! Results of MLX, from files that `xtask/python/make_kernel_fixtures.py` makes.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::SafeTensors;

use crate::support::Format;

pub struct Fixture(Vec<u8>);

impl Fixture {
    pub fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        Self(std::fs::read(path).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// The names of the cases that begin with a prefix: what stands before the last dot of the names of tensors.
    pub fn cases(&self, start: &str) -> Vec<String> {
        let tensors = self.tensors();
        let cases: BTreeSet<_> = tensors
            .names()
            .into_iter()
            .filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned()))
            .filter(|case| case.starts_with(start))
            .collect();
        assert!(!cases.is_empty(), "no case {start}");
        cases.into_iter().collect()
    }

    pub fn shape(&self, case: &str, tensor: &str) -> Vec<usize> {
        self.tensors().tensor(&format!("{case}.{tensor}")).unwrap().shape().to_vec()
    }

    fn words<const N: usize>(&self, case: &str, tensor: &str) -> Option<Vec<[u8; N]>> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(&format!("{case}.{tensor}")).ok()?;
        let count = tensor.shape().iter().product::<usize>();
        assert_eq!(tensor.data().len(), count * N);
        Some(tensor.data().chunks_exact(N).map(|word| word.try_into().unwrap()).collect())
    }

    pub fn floats<T: Format>(&self, case: &str, tensor: &str) -> Vec<T> {
        match size_of::<T>() {
            2 => {
                let words = self.words::<2>(case, tensor).unwrap().into_iter();
                words.map(|word| T::of_bits(u32::from(u16::from_le_bytes(word)))).collect()
            }
            _ => self.u32s(case, tensor).into_iter().map(T::of_bits).collect(),
        }
    }

    pub fn u32s(&self, case: &str, tensor: &str) -> Vec<u32> {
        self.words::<4>(case, tensor).unwrap().into_iter().map(u32::from_le_bytes).collect()
    }

    pub fn i32s(&self, case: &str, tensor: &str) -> Vec<i32> {
        self.words::<4>(case, tensor).unwrap().into_iter().map(i32::from_le_bytes).collect()
    }

    /// A float32 argument, if the case has it.
    pub fn number(&self, case: &str, tensor: &str) -> Option<f32> {
        Some(f32::from_le_bytes(*self.words::<4>(case, tensor)?.first()?))
    }

    pub fn optional_f32s(&self, case: &str, tensor: &str) -> Option<Vec<f32>> {
        Some(self.words::<4>(case, tensor)?.into_iter().map(f32::from_le_bytes).collect())
    }

    pub fn integer(&self, case: &str, tensor: &str) -> usize {
        self.i32s(case, tensor)[0].try_into().unwrap()
    }

    pub fn bools(&self, case: &str, tensor: &str) -> Vec<bool> {
        self.words::<1>(case, tensor).unwrap().into_iter().map(|[byte]| byte != 0).collect()
    }
}
