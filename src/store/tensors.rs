//! Named tensors in memory and in safetensors files.

use super::atomic::write_bytes;
use super::cores::on_all_cores;
use super::digest::digest;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3Default;

const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// Writes named tensors and string metadata as one safetensors file, atomically.
pub(crate) fn save_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<()> {
    write_bytes(path, &tensor_file_bytes(tensors, metadata)?)
}

/// The bytes that [`save_tensors`] writes.
pub(crate) fn tensor_file_bytes(
    tensors: &[(String, Tensor)],
    mut metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    let bad = |e: SafeTensorError| Error::Data(format!("safetensors: {e}"));
    let mut raw = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.f_kind()?;
        let dtype = KINDS.iter().find(|(_, k)| *k == kind).map(|(d, _)| *d).ok_or_else(|| {
            Error::Input(format!("{name} has the type {kind:?}, which a weight file cannot hold; convert it to f32"))
        })?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        raw.push((name, dtype, shape, tensor_bytes(tensor)?));
    }
    let views = raw
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(bad)?;
    // PyTorch's own tools write this entry and look for it.
    metadata.insert("format".to_owned(), "pt".to_owned());
    safetensors::serialize(views, Some(metadata)).map_err(bad)
}

/// Reads the tensors of a safetensors file onto the CPU.
pub(crate) fn parse_tensors(bytes: &[u8]) -> std::result::Result<Vec<(String, Tensor)>, String> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| format!("neither safetensors nor .pth, or damaged ({e}); download or save it again"))?;
    let tensor = |(name, view): (&str, TensorView)| {
        let kind = KINDS.iter().find(|(d, _)| *d == view.dtype()).map(|(_, k)| *k);
        let kind = kind.ok_or_else(|| format!("{name} has the type {:?}; convert it to f32", view.dtype()))?;
        let size: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Ok((name.to_owned(), tensor_from_bytes(view.data(), &size, kind)?))
    };
    file.iter().map(tensor).collect()
}

/// Makes a tensor of shape `size` on the CPU from raw little-endian values.
pub(crate) fn tensor_from_bytes(data: &[u8], size: &[i64], kind: Kind) -> std::result::Result<Tensor, String> {
    let made = match kind {
        // In C++ a bool other than 0 and 1 is undefined behaviour.
        Kind::Bool => Tensor::f_from_data_size(data, size, Kind::Uint8).and_then(|t| t.f_ne(0)),
        _ => Tensor::f_from_data_size(data, size, kind),
    };
    made.map_err(|e| Error::from(e).to_string())
}

/// Reads a file of [`save_tensors`]: the tensors, on the CPU, and the metadata.
pub(crate) fn load_tensors(path: &Path) -> Result<(HashMap<String, Tensor>, HashMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
    let broken = |e: String| Error::Data(format!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
    let tensors = parse_tensors(&bytes).map_err(broken)?.into_iter().collect();
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

/// Maps the only tensor of a safetensors file into memory. The system reads the values when they are used.
pub(crate) fn map_tensor(path: &Path, kind: Kind, shape: &[i64]) -> Result<Tensor> {
    let io = |e| Error::io("reading", path, e);
    let mut length = [0; 8];
    let mut file = std::fs::File::open(path).map_err(io)?;
    file.read_exact(&mut length).map_err(io)?;
    let (start, all) = (8u64.saturating_add(u64::from_le_bytes(length)), file.metadata().map_err(io)?.len());
    let bytes = shape.iter().product::<i64>() as u64 * kind.elt_size_in_bytes() as u64;
    let name = path.to_str().filter(|_| start.checked_add(bytes) == Some(all)).ok_or_else(|| {
        Error::Data(format!("{} does not hold the values {shape:?} that were put there: delete it", path.display()))
    })?;
    let whole = Tensor::f_from_file(name, false, Some(all as i64), (Kind::Uint8, Device::Cpu))?;
    Ok(whole.f_narrow(0, start as i64, bytes as i64)?.f_view_dtype(kind)?.f_view(shape)?)
}

/// The raw values of a tensor in row-major order.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0u8; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// A digest of the names, shapes and values of tensors. A backbone has 90 MB, so all cores share the work, and the hash
/// of the values is XXH3, which takes a fifth of SHA-256's time. It need not resist forgery: the digest only names a
/// cache.
pub(crate) fn digest_tensors(tensors: &[(String, Tensor)]) -> Result<String> {
    let digest_one = |(name, tensor): (&String, Tensor)| -> Result<String> {
        let shape = format!("{:?}", tensor.size());
        // The weights of a convolution are stored with channels innermost; this avoids a copy.
        let values = match tensor.dim() {
            4 => tensor.f_permute([0, 2, 3, 1])?,
            _ => tensor,
        };
        let mut hash = Xxh3Default::new();
        hash.update(&tensor_bytes(&values)?);
        Ok(digest(&[name.as_bytes(), shape.as_bytes(), &hash.digest128().to_le_bytes()]))
    };
    // Threads cannot share a tensor, so each gets handles of its own.
    let handles = tensors.iter().map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
    let digests = on_all_cores(handles, digest_one).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(digest(&digests.iter().map(String::as_bytes).collect::<Vec<_>>()))
}

/// Copies `values` to a device. The call does not wait for a GPU, which may still work on the previous batch.
pub(crate) fn upload<T: tch::kind::Element>(values: &[T], device: Device) -> Result<Tensor> {
    let here = Tensor::f_from_slice(values)?;
    match device {
        Device::Cpu => Ok(here),
        // CUDA copies from memory that is not pinned before the call returns, so `here` can be freed then.
        _ => Ok(here.f_internal_to_copy((here.kind(), device), device.is_cuda())?),
    }
}
