//! Files that are whole or absent: written beside their place and renamed, so a kill leaves no half of one.

use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Writes `path` atomically: `write` fills a temporary file in the same folder, which is synced and renamed.
pub(crate) fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let done = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        write(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    done().map_err(|e| Error::io("writing", path, e))
}

/// [`write_atomic`] for bytes already in memory.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |f| f.write_all(bytes))
}

/// Writes named tensors and string metadata as one safetensors file, atomically.
pub(crate) fn save_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: HashMap<String, String>,
) -> Result<()> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor
            .f_detach()?
            .f_to_device(Device::Cpu)?
            .f_contiguous()?;
        let (dtype, width) = match tensor.kind() {
            Kind::Float => (Dtype::F32, 4),
            Kind::Int64 => (Dtype::I64, 8),
            other => {
                return Err(Error::Input(format!(
                    "{name} is {other:?}; only f32 and i64 tensors are saved"
                )));
            }
        };
        let mut bytes = vec![0u8; tensor.numel() * width];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|&d| d as usize).collect();
        data.push((name.as_str(), dtype, shape, bytes));
    }
    let broken = |e| Error::Data(format!("{}: {e}", path.display()));
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).map_err(broken)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    write_bytes(
        path,
        &safetensors::serialize(views, Some(metadata)).map_err(broken)?,
    )
}

/// Reads what [`save_tensors`] wrote; tensors on the CPU.
pub(crate) fn load_tensors(
    path: &Path,
) -> Result<(HashMap<String, Tensor>, HashMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
    let broken = |e| {
        Error::Data(format!(
            "{} is not a whole safetensors file ({e}); delete it and make it anew",
            path.display()
        ))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::I64 => Kind::Int64,
            other => {
                return Err(Error::Data(format!(
                    "{}: {name} is {other:?}; expected f32 or i64",
                    path.display()
                )));
            }
        };
        let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
        tensors.insert(name, Tensor::f_from_data_size(view.data(), &shape, kind)?);
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

/// Hex SHA-256 over parts, each preceded by its length so that neighbours cannot run together.
pub(crate) fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// [`digest`] of named tensors: names, shapes and values.
pub(crate) fn digest_tensors(tensors: &[(String, Tensor)]) -> Result<String> {
    let mut sums = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor
            .f_detach()?
            .f_to_device(Device::Cpu)?
            .f_contiguous()?;
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        sums.push(digest(&[
            name.as_bytes(),
            format!("{:?}", tensor.size()).as_bytes(),
            &bytes,
        ]));
    }
    Ok(digest(
        &sums.iter().map(|s| s.as_bytes()).collect::<Vec<_>>(),
    ))
}

/// Waits until no other process or thread holds the lock file at `path`; it is ours until the result is dropped or
/// the process ends, however it ends.
pub(crate) fn lock(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(path).map_err(|e| Error::io("writing", path, e))?;
    // Some network file systems know no locks. What is written under one is checked and renamed anyway.
    let _ = file.lock();
    Ok(file)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hex SHA-256 over parts one after the other.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    parts.into_iter().for_each(|p| hash.update(p));
    hex(&hash.finalize())
}
