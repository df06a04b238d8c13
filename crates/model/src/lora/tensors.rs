//! Adapters to and from the tensors of a PEFT directory.

use std::collections::HashMap;
use std::ops::Range;

use formats::adapter::AdapterTensor;

use super::{Adapter, invalid};
use crate::Result;
use crate::config::ModelConfig;
use crate::device::{Buffer, Device};
use crate::family::{self, Role};

impl<D: Device> Adapter<D> {
    /// The factors of each adapted layer under its PEFT module name.
    ///
    /// # Errors
    /// What the device meets.
    pub fn to_tensors(&self, config: &ModelConfig) -> Result<Vec<AdapterTensor>> {
        let names = module_names(config);
        let part = |range: &Range<usize>| {
            let mut values = vec![0.0; range.len()];
            self.device.download(self.weights.part(range.clone()), &mut values)?;
            Ok::<_, crate::Error>(values)
        };
        let tensor = |(layer, cols, member): (usize, usize, &super::Member)| {
            Ok(AdapterTensor {
                module: names[&(layer, member.role)].clone(),
                a: part(&member.a)?,
                b: part(&member.b)?,
                magnitude: member.magnitude.as_ref().map(part).transpose()?,
                r: member.rank,
                in_features: cols,
                out_features: member.rows,
            })
        };
        self.layout.members().map(tensor).collect()
    }

    /// Fills the adapter from tensors; each adapted layer must be there, and nothing else.
    ///
    /// # Errors
    /// [`crate::Error::InvalidAdapter`] naming the module that is missing, surplus, or of another shape.
    pub fn set_tensors(&mut self, config: &ModelConfig, tensors: &[AdapterTensor]) -> Result<()> {
        let names = module_names(config);
        let mut by_name: HashMap<&str, &AdapterTensor> =
            tensors.iter().map(|tensor| (tensor.module.as_str(), tensor)).collect();
        if by_name.len() != tensors.len() {
            return Err(invalid("module list", "a name twice", "each module once"));
        }
        let mut parts: Vec<(Range<usize>, &[f32])> = Vec::new();
        for (layer, cols, member) in self.layout.members() {
            let name = names[&(layer, member.role)].as_str();
            let tensor = by_name.remove(name).ok_or_else(|| invalid(name, "missing", "its two factors"))?;
            let (found, expected) =
                ((tensor.r, tensor.in_features, tensor.out_features), (member.rank, cols, member.rows));
            if found != expected || tensor.a.len() != member.a.len() || tensor.b.len() != member.b.len() {
                let expected = format!("{expected:?}");
                return Err(invalid(&format!("{name} (rank, in, out)"), format!("{found:?}"), &expected));
            }
            parts.extend([(member.a.clone(), tensor.a.as_slice()), (member.b.clone(), &tensor.b)]);
            match (&member.magnitude, &tensor.magnitude) {
                (Some(range), Some(lengths)) if lengths.len() == range.len() => {
                    parts.push((range.clone(), lengths));
                }
                (None, None) => {}
                (expected, _) => {
                    let expected = if expected.is_some() { "one length an output" } else { "absent" };
                    return Err(invalid(&format!("{name} lengths of DoRA"), "other", expected));
                }
            }
        }
        match by_name.keys().min() {
            Some(surplus) => Err(invalid(surplus, "present", "only modules that the options target")),
            None => parts
                .into_iter()
                .try_for_each(|(range, values)| self.device.upload(values, self.weights.part_mut(range))),
        }
    }
}

fn module_names(config: &ModelConfig) -> HashMap<(usize, Role), String> {
    let linears = family::linears(config).into_iter();
    linears.map(|linear| ((linear.layer, linear.role), linear.module)).collect()
}
