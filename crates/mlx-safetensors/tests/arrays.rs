//! Arrays of MLX that are written and read again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::io::{self, Write};

use mlx_rs::{Array, Dtype as MlxDtype};
use mlx_safetensors::arrays::{from_bytes, with_bytes, write};
use mlx_safetensors::{Dtype, Header};

/// A file in memory with room for this many bytes more.
struct Disk {
    room: usize,
    bytes: Vec<u8>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn arrays_of_every_dtype_and_form_are_read_as_they_were_written() {
    let numbers = Array::from_iter(0..24, &[2, 3, 4]);
    let dtypes = [
        MlxDtype::Bool,
        MlxDtype::Uint8,
        MlxDtype::Int16,
        MlxDtype::Uint32,
        MlxDtype::Int64,
        MlxDtype::Float16,
        MlxDtype::Bfloat16,
        MlxDtype::Float32,
        MlxDtype::Complex64,
    ];
    let mut arrays: Vec<(String, Array)> =
        dtypes.iter().map(|dtype| (format!("{dtype:?}"), numbers.as_dtype(*dtype).unwrap())).collect();
    // Not in the order of its elements, without elements, without axes, and of no multiple of four bytes.
    arrays.push(("turned".to_owned(), numbers.transpose().unwrap()));
    arrays.push(("empty".to_owned(), Array::zeros::<f32>(&[0, 3]).unwrap()));
    arrays.push(("scalar".to_owned(), Array::from_int(7)));
    arrays.push(("odd".to_owned(), Array::from_slice(&[1_u8, 2, 3], &[3])));
    let mut disk = Disk { room: 1 << 16, bytes: Vec::new() };
    let mut told = Vec::new();
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    write(&mut disk, &metadata, arrays.clone(), |key| {
        told.push(key.to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(told, arrays.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());

    let header = Header::read_from(&mut &disk.bytes[..], disk.bytes.len() as u64).unwrap();
    assert_eq!(header.metadata(), &metadata);
    assert_eq!(header.tensors().len(), arrays.len());
    for (key, array) in &arrays {
        let (_, tensor) = header.tensors().iter().find(|(found, _)| found == key).unwrap();
        let at = |place: u64| (header.data_start() + place) as usize;
        let bytes = &disk.bytes[at(tensor.bytes.start)..at(tensor.bytes.end)];
        let found = from_bytes(bytes, tensor.dtype, &tensor.shape).unwrap();
        assert_eq!((found.dtype(), found.shape()), (array.dtype(), array.shape()), "{key}");
        let same = with_bytes(&found, |found| with_bytes(array, |expected| found == expected));
        assert!(same.unwrap().unwrap(), "{key}");
    }
}

#[test]
fn what_mlx_cannot_hold_is_an_error() {
    for (dtype, shape, bytes) in [
        (Dtype::F4, vec![4], 2),
        (Dtype::F32, vec![3], 4),
        (Dtype::F32, vec![1 << 31], 4),
        (Dtype::U8, vec![1], 0),
        (Dtype::U8, vec![0], 4),
        // Zeros that nothing touches take no memory.
        (Dtype::U8, vec![1 << 16, 1 << 15], 1 << 31),
    ] {
        assert!(from_bytes(&vec![0; bytes], dtype, &shape).is_err(), "{dtype:?} {shape:?}");
    }
    // An array that is not computed takes no memory either.
    let long = Array::zeros::<f32>(&[1 << 29]).unwrap();
    assert!(with_bytes(&long, |_| ()).is_err());
}

#[test]
fn a_full_disk_or_a_caller_stops_the_writing() {
    let arrays = || vec![("a".to_owned(), Array::ones::<f32>(&[100]).unwrap())];
    let write = |room| write(&mut Disk { room, bytes: Vec::new() }, &BTreeMap::new(), arrays(), |_| Ok(()));
    for room in [0, 10, 300] {
        assert_eq!(write(room).unwrap_err().kind(), io::ErrorKind::StorageFull, "{room}");
    }
    write(1000).unwrap();
    let mut disk = Disk { room: 1000, bytes: Vec::new() };
    let stopped = mlx_safetensors::arrays::write(&mut disk, &BTreeMap::new(), arrays(), |_| {
        Err(io::ErrorKind::Interrupted.into())
    });
    assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
}
