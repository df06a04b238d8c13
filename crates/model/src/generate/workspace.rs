//! The forward pass of decoding: rows of any of the sequences through all layers, keys and values into the cache.
//!
//! The same layers as in training, without what a backward needs and with a cache instead of a packed batch. All
//! memory is drawn once; a token allocates nothing on the device.

use super::latent::LatentRoom;
use super::mixer::Mixers;
use super::sizes::{Part, Sizes, cached_widths};
use crate::Result;
use crate::base::{Base, ExpertLens, ExpertRoom, Place, Update};
use crate::config::{ModelConfig, Projection};
use crate::device::{Buffer, Device, Rotated, Rotation, Segment, View, ViewMut, Write};
use crate::family::Role;
use crate::lora::{Adapter, Factors, Group, RowNorms};

/// One token to be read: what, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub token: u32,
    pub position: u32,
    pub cache_row: u32,
}

/// Keys and values of one layer, (S·T, K·D) and (S·T, K·E).
struct Cache<B> {
    keys: B,
    values: B,
}

/// All memory of a generator.
pub(super) struct Workspace<D: Device> {
    device: D,
    pub sizes: Sizes,
    cache: Vec<Cache<D::Buffer>>,
    stream: D::Buffer,
    normed: D::Buffer,
    queries: D::Buffer,
    keys: D::Buffer,
    values: D::Buffer,
    attended: D::Buffer,
    log_sums: D::Buffer,
    projected: D::Buffer,
    gate: D::Buffer,
    up: D::Buffer,
    gated: D::Buffer,
    picked: [D::Buffer; 2],
    logits: D::Buffer,
    folds: [D::Buffer; 3],
    branch: Option<D::Buffer>,
    mixers: Option<Mixers<D::Buffer>>,
    latent: Option<LatentRoom<D::Buffer>>,
    experts: Option<ExpertRoom<D::Buffer, D::Indices>>,
    rotary: Vec<(D::Buffer, D::Buffer)>,
    tokens: D::Indices,
    rotary_rows: D::Indices,
    /// Keys in the cache cannot be turned again: the capacity decides, as llama.cpp's does, whether a text is long.
    rotary_start: u32,
    cache_rows: D::Indices,
    logit_rows: D::Indices,
    targets: D::Indices,
    host_indices: Vec<u32>,
}

impl<D: Device> Workspace<D> {
    pub fn new(device: &D, config: &ModelConfig, sizes: Sizes) -> Result<Self> {
        let part = |part: Part| device.alloc("decoding workspace", part.len(&sizes, config));
        let indices = |len| device.alloc_indices("decoding indices", len);
        let fold = || device.alloc("decoding workspace", sizes.logit_rows);
        let picked = || device.alloc("decoding workspace", sizes.logit_rows * config.hidden);
        let [keys, values] = cached_widths(config).map(|width| sizes.cache_rows * width);
        let cache = |_| -> Result<_> {
            Ok(Cache { keys: device.alloc("key cache", keys)?, values: device.alloc("value cache", values)? })
        };
        let tables = config.rotary_tables(sizes.positions);
        let table = |len| device.alloc("rotary tables", len);
        let mut workspace = Workspace {
            device: device.clone(),
            sizes,
            cache: (0..config.n_layers)
                .filter(|_| config.mixer.is_none())
                .map(cache)
                .collect::<Result<_>>()?,
            stream: part(Part::Stream)?,
            normed: part(Part::Normed)?,
            queries: part(Part::Queries)?,
            keys: part(Part::Keys)?,
            values: part(Part::Values)?,
            attended: part(Part::Attended)?,
            log_sums: part(Part::LogSums)?,
            projected: part(Part::Projected)?,
            gate: part(Part::Gate)?,
            up: part(Part::Up)?,
            gated: part(Part::Gated)?,
            picked: [picked()?, picked()?],
            logits: part(Part::Logits)?,
            folds: [fold()?, fold()?, fold()?],
            branch: config.family.has(Role::PostFfnNorm).then(|| part(Part::Branch)).transpose()?,
            mixers: Mixers::new(device, config, &sizes)?,
            latent: LatentRoom::new(device, config, &sizes)?,
            experts: expert_room(device, config, &sizes)?,
            rotary: tables
                .iter()
                .map(|t| Ok((table(t.cos.len())?, table(t.sin.len())?)))
                .collect::<Result<_>>()?,
            tokens: indices(sizes.rows)?,
            rotary_rows: indices(sizes.rows)?,
            rotary_start: config.rotary_start(sizes.positions, sizes.positions) as u32,
            cache_rows: indices(sizes.rows)?,
            logit_rows: indices(sizes.logit_rows)?,
            targets: indices(sizes.logit_rows)?,
            host_indices: Vec::with_capacity(sizes.rows.max(sizes.logit_rows)),
        };
        for (table, (cos, sin)) in tables.iter().zip(&mut workspace.rotary) {
            device.upload(&table.cos, cos.all_mut())?;
            device.upload(&table.sin, sin.all_mut())?;
        }
        Ok(workspace)
    }

    /// Reads the rows, which are consecutive tokens of the sequences that `segments` name, into cache and stream.
    pub fn read(
        &mut self,
        base: &Base<D>,
        adapted: Adapted<'_, D>,
        rows: &[Row],
        segments: &[Segment],
    ) -> Result<()> {
        let n = rows.len();
        self.upload_rows(rows)?;
        let stream = self.stream.first_mut(n * base.config.hidden);
        base.come_to(Place::Embedding, Some(Place::Layer(0)));
        base.embed(self.tokens.first(n), stream)?;
        let pass = Pass { base, adapted, n };
        if let Some(mixers) = &mut self.mixers {
            mixers.begin(segments);
        }
        for index in 0..base.config.n_layers {
            base.come_to_layer(index);
            if self.mixers.is_some() {
                self.mix(pass, index)?;
                continue;
            }
            if self.latent.is_some() {
                self.attend_latent(pass, index, segments)?;
            } else {
                self.attend(pass, index, segments)?;
            }
            self.feed_forward(pass, index)?;
        }
        Ok(())
    }

    fn upload_rows(&mut self, rows: &[Row]) -> Result<()> {
        let n = rows.len();
        let (host, rotary_start) = (&mut self.host_indices, self.rotary_start);
        let mut upload = |field: &dyn Fn(&Row) -> u32, to: &mut D::Indices| {
            host.clear();
            host.extend(rows.iter().map(field));
            self.device.upload_indices(host, to.first_mut(n))
        };
        upload(&|row| row.token, &mut self.tokens)?;
        upload(&|row| rotary_start + row.position, &mut self.rotary_rows)?;
        upload(&|row| row.cache_row, &mut self.cache_rows)
    }

    /// stream += mixer(norm(stream))
    fn mix(&mut self, pass: Pass<'_, D>, index: usize) -> Result<()> {
        let Some(mixers) = &mut self.mixers else { return Ok(()) };
        let len = pass.n * pass.base.config.hidden;
        pass.base.norm(Some(index), Role::AttnNorm, self.stream.first(len), self.normed.first_mut(len))?;
        mixers.run(pass, index, self.normed.first(len), &mut self.projected, &mut self.stream)
    }

    /// stream += Wo · attention(norm(stream)), with the norms in between that the family has
    fn attend(&mut self, pass: Pass<'_, D>, index: usize, segments: &[Segment]) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let config = &base.config;
        let (c, q_width, kv) = (config.hidden, config.q_width(), config.kv_width());
        base.norm(Some(index), Role::AttnNorm, self.stream.first(n * c), self.normed.first_mut(n * c))?;
        let input = self.normed.first(n * c);
        pass.project(index, Group::Qkv, input, &mut self.projected)?;
        let u = self.projected.all();
        if base.has(Role::QNorm) {
            // The un-normed heads pass through the buffer that attention fills later.
            pass.linear(index, Role::Q, input, u, Write::Set, self.attended.first_mut(n * q_width))?;
            let (raw, to) = (self.attended.first(n * q_width), self.queries.first_mut(n * q_width));
            base.norm(Some(index), Role::QNorm, raw, to)?;
            pass.linear(index, Role::K, input, u, Write::Set, self.attended.first_mut(n * kv))?;
            let (raw, to) = (self.attended.first(n * kv), self.keys.first_mut(n * kv));
            base.norm(Some(index), Role::KNorm, raw, to)?;
        } else {
            pass.linear(index, Role::Q, input, u, Write::Set, self.queries.first_mut(n * q_width))?;
            pass.linear(index, Role::K, input, u, Write::Set, self.keys.first_mut(n * kv))?;
        }
        pass.linear(index, Role::V, input, u, Write::Set, self.values.first_mut(n * kv))?;
        self.rotate(config, index, n)?;
        let device = &self.device;
        let cache = &mut self.cache[index];
        let at = self.cache_rows.first(n);
        device.scatter_rows(self.keys.first(n * kv), kv, at, cache.keys.all_mut())?;
        device.scatter_rows(self.values.first(n * kv), kv, at, cache.values.all_mut())?;
        let (queries, out) = (self.queries.first(n * q_width), self.attended.first_mut(n * q_width));
        let (keys, values) = (cache.keys.all(), cache.values.all());
        let log_sums = self.log_sums.first_mut(n * config.n_heads);
        device.attention(config.heads(index), segments, queries, keys, values, out, log_sums)?;
        self.join_attention(pass, index)
    }

    fn rotate(&mut self, config: &ModelConfig, index: usize, n: usize) -> Result<()> {
        let queries = (&mut self.queries, config.rotated(config.n_heads));
        let keys = match &mut self.latent {
            Some(latent) => (&mut latent.rotated, config.rotated_key()),
            None => (&mut self.keys, config.rotated(config.n_kv_heads)),
        };
        let (cos, sin) = &self.rotary[config.rotary_index(index)];
        let (device, rows) = (&self.device, self.rotary_rows.first(n));
        for (heads, rotated) in [queries, keys] {
            let Rotated { n_heads, head_dim, .. } = rotated;
            let heads = heads.first_mut(n * n_heads * head_dim);
            device.rope(heads, rotated, rows, cos.all(), sin.all(), Rotation::Forward)?;
        }
        Ok(())
    }

    /// stream += Wo · attention(norm(stream)) over cached latents
    fn attend_latent(&mut self, pass: Pass<'_, D>, index: usize, segments: &[Segment]) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let (config, heads) = (&base.config, base.config.latent_heads());
        let (c, q_width, l, p) = (config.hidden, config.q_width(), heads.rank, heads.rotated);
        let Some(latent) = &mut self.latent else { return Ok(()) };
        base.norm(Some(index), Role::AttnNorm, self.stream.first(n * c), self.normed.first_mut(n * c))?;
        let input = self.normed.first(n * c);
        pass.project(index, Group::Qkv, input, &mut self.projected)?;
        let u = self.projected.all();
        pass.linear(index, Role::Q, input, u, Write::Set, self.queries.first_mut(n * q_width))?;
        pass.linear(index, Role::KvLatent, input, u, Write::Set, latent.wide.first_mut(n * l))?;
        pass.linear(index, Role::KvRotated, input, u, Write::Set, latent.rotated.first_mut(n * p))?;
        let compressed = latent.wide.first(n * l);
        base.norm(Some(index), Role::KvNorm, compressed, self.values.first_mut(n * l))?;
        self.rotate(config, index, n)?;

        let (device, width) = (&self.device, l + p);
        let Some(latent) = &mut self.latent else { return Ok(()) };
        let to = self.keys.first_mut(n * width).matrix(n, width).columns(0..l);
        device.copy_columns(self.values.first(n * l).matrix(n, l), Write::Set, to)?;
        let to = self.keys.first_mut(n * width).matrix(n, width).columns(l..width);
        device.copy_columns(latent.rotated.first(n * p).matrix(n, p), Write::Set, to)?;
        let (cache, at) = (&mut self.cache[index], self.cache_rows.first(n));
        device.scatter_rows(self.keys.first(n * width), width, at, cache.keys.all_mut())?;
        device.scatter_rows(self.values.first(n * l), l, at, cache.values.all_mut())?;
        latent.absorb(pass, index, self.queries.first(n * q_width))?;
        let queries = latent.queries.first(n * heads.n_heads * width);
        let (keys, values) = (cache.keys.all(), cache.values.all());
        let out = latent.attended.first_mut(n * heads.n_heads * l);
        let log_sums = self.log_sums.first_mut(n * config.n_heads);
        device.attention(config.cached_heads(index), segments, queries, keys, values, out, log_sums)?;
        latent.expand(pass, index, &mut self.attended)?;
        self.join_attention(pass, index)
    }

    /// stream += Wo · what the heads gave
    fn join_attention(&mut self, pass: Pass<'_, D>, index: usize) -> Result<()> {
        let len = pass.n * pass.base.config.attended_width();
        pass.project(index, Group::O, self.attended.first(len), &mut self.projected)?;
        let input = self.attended.first(len);
        let branch =
            Branch { normed: &mut self.normed, joined: self.branch.as_mut(), stream: &mut self.stream };
        branch.join(pass, index, (Role::O, Role::PostAttnNorm), input, self.projected.all())
    }

    /// stream += Wdown · (act(Wgate · h) · (Wup · h)), h = norm(stream), with what the family has of it
    fn feed_forward(&mut self, pass: Pass<'_, D>, index: usize) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let (config, device) = (&base.config, &self.device);
        let (c, f) = (config.hidden, config.mlp_width(index));
        base.norm(Some(index), Role::FfnNorm, self.stream.first(n * c), self.normed.first_mut(n * c))?;
        let input = self.normed.first(n * c);
        if let Some(experts) = self.experts.as_mut().filter(|_| config.is_routed(index)) {
            base.run_experts(index, n, input, 0, experts, None)?;
        }
        pass.project(index, Group::GateUp, input, &mut self.projected)?;
        let u = self.projected.all();
        pass.linear(index, Role::Up, input, u, Write::Set, self.up.first_mut(n * f))?;
        let gated = self.gated.first_mut(n * f);
        if config.is_gated() {
            pass.linear(index, Role::Gate, input, u, Write::Set, self.gate.first_mut(n * f))?;
            device.gated(config.activation, self.gate.first(n * f), self.up.first(n * f), gated)?;
        } else {
            device.activate(config.activation, self.up.first(n * f), gated)?;
        }
        pass.project(index, Group::Down, self.gated.first(n * f), &mut self.projected)?;
        let input = self.gated.first(n * f);
        let branch =
            Branch { normed: &mut self.normed, joined: self.branch.as_mut(), stream: &mut self.stream };
        branch.join(pass, index, (Role::Down, Role::PostFfnNorm), input, self.projected.all())?;
        match self.experts.as_ref().filter(|_| config.is_routed(index)) {
            Some(experts) => base.join_experts(n, 0, experts, self.stream.first_mut(n * c)),
            None => Ok(()),
        }
    }

    /// Logits (|rows|, V) of some rows of the pass before.
    fn project_logits(&mut self, base: &Base<D>, rows: &[u32]) -> Result<()> {
        let (c, v, n) = (base.config.hidden, base.config.vocab_size, rows.len());
        base.come_to(Place::Head, None);
        let device = &self.device;
        device.upload_indices(rows, self.logit_rows.first_mut(n))?;
        let [picked, normed] = &mut self.picked;
        device.gather_rows(self.stream.all(), c, self.logit_rows.first(n), picked.first_mut(n * c))?;
        base.norm(None, Role::OutputNorm, picked.first(n * c), normed.first_mut(n * c))?;
        device.linear(normed.first(n * c), base.head(), 0..v, Write::Set, self.logits.first_mut(n * v))
    }

    /// Copies the logits of some rows (at most [`Sizes::logit_rows`]) of the pass before to the host.
    pub fn logits(&mut self, base: &Base<D>, rows: &[u32], to: &mut [f32]) -> Result<()> {
        self.project_logits(base, rows)?;
        self.device.download(self.logits.first(to.len()), to)
    }

    /// Σ w · -ln p(target) over some rows of the pass before, one target and weight a row.
    pub fn sum_nll(&mut self, base: &Base<D>, rows: &[u32], targets: &[u32], weights: &[f32]) -> Result<f64> {
        let (mut sum, tile) = (0.0, self.sizes.logit_rows);
        for ((rows, targets), weights) in
            rows.chunks(tile).zip(targets.chunks(tile)).zip(weights.chunks(tile))
        {
            self.project_logits(base, rows)?;
            sum += self.fold(base.config.vocab_size, targets, weights)?;
        }
        Ok(sum)
    }

    fn fold(&mut self, v: usize, targets: &[u32], weights: &[f32]) -> Result<f64> {
        let n = targets.len();
        let device = &self.device;
        let [max, sum, target_logit] = &mut self.folds;
        device.upload_indices(targets, self.targets.first_mut(n))?;
        device.fill(f32::NEG_INFINITY, max.first_mut(n))?;
        device.fill(0.0, sum.first_mut(n))?;
        device.fill(0.0, target_logit.first_mut(n))?;
        let (logits, targets) = (self.logits.first(n * v), self.targets.first(n));
        device.softmax_fold(
            logits,
            0,
            targets,
            max.first_mut(n),
            sum.first_mut(n),
            target_logit.first_mut(n),
        )?;
        let mut host = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
        for (from, to) in self.folds.iter().zip(&mut host) {
            device.download(from.first(n), to)?;
        }
        let [max, sum, target_logit] = host;
        let nll = |i: usize| f64::from(max[i]) + f64::from(sum[i]).ln() - f64::from(target_logit[i]);
        Ok((0..n).map(|i| f64::from(weights[i]) * nll(i)).sum())
    }
}

/// Room for the routed experts of all rows.
fn expert_room<D: Device>(
    device: &D,
    config: &ModelConfig,
    sizes: &Sizes,
) -> Result<Option<ExpertRoom<D::Buffer, D::Indices>>> {
    if config.experts.is_none() {
        return Ok(None);
    }
    let lens = ExpertLens::new(config, sizes.rows, sizes.rows);
    let floats = lens.floats.into_iter().map(|len| device.alloc("decoding workspace", len));
    let indices = lens.indices.into_iter().map(|len| device.alloc_indices("decoding indices", len));
    let (floats, indices) = (floats.collect::<Result<Vec<_>>>()?, indices.collect::<Result<Vec<_>>>()?);
    Ok(Some(ExpertRoom::new(config, sizes.rows, sizes.rows, floats, indices)))
}

/// What the layers of one pass have in common: base, adapter, and `n` rows.
pub(super) struct Pass<'a, D: Device> {
    pub base: &'a Base<D>,
    adapted: Adapted<'a, D>,
    pub n: usize,
}

/// What stands beside the base, if anything does.
pub(super) struct Adapted<'a, D: Device> {
    pub adapter: Option<&'a Adapter<D>>,
    /// With DoRA.
    pub norms: Option<&'a RowNorms<D>>,
}

impl<D: Device> Clone for Adapted<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Adapted<'_, D> {}

impl<D: Device> Clone for Pass<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Pass<'_, D> {}

impl<'a, D: Device> Pass<'a, D> {
    /// u = x·Aᵀ of a group
    pub fn project(
        self,
        index: usize,
        group: Group,
        x: View<'_, D::Buffer>,
        u: &mut D::Buffer,
    ) -> Result<()> {
        let Some(adapter) = self.adapted.adapter else { return Ok(()) };
        let width = adapter.width(index, group);
        adapter.project(index, group, self.n, x, u.first_mut(self.n * width))
    }

    /// The adapter's factors of some rows of a layer.
    pub fn factors(self, index: usize, projection: &Projection) -> Option<Factors<'a, D::Buffer>> {
        self.adapted.adapter?.factors(index, projection)
    }

    pub fn linear(
        self,
        index: usize,
        role: Role,
        x: View<'_, D::Buffer>,
        u: View<'_, D::Buffer>,
        write: Write,
        y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let Adapted { adapter, norms } = self.adapted;
        let update = adapter.map(|adapter| Update { adapter, norms, u });
        self.base.linear(index, role, update, self.n, x, write, y)
    }
}

/// Where a half of a layer joins the stream.
struct Branch<'a, B> {
    normed: &'a mut B,
    joined: Option<&'a mut B>,
    stream: &'a mut B,
}

impl<B: Buffer> Branch<'_, B> {
    /// stream += norm(W · x), or W · x in families without that norm
    fn join<D: Device<Buffer = B>>(
        self,
        pass: Pass<'_, D>,
        index: usize,
        (role, norm): (Role, Role),
        x: View<'_, B>,
        u: View<'_, B>,
    ) -> Result<()> {
        let len = pass.n * pass.base.config.hidden;
        let Some(joined) = self.joined else {
            if pass.adapted.norms.is_none() {
                return pass.linear(index, role, x, u, Write::Add, self.stream.first_mut(len));
            }
            pass.linear(index, role, x, u, Write::Set, self.normed.first_mut(len))?;
            return pass.base.device.add(self.normed.first(len), self.stream.first_mut(len));
        };
        // What the half's own norm made is used up.
        pass.linear(index, role, x, u, Write::Set, self.normed.first_mut(len))?;
        pass.base.norm(Some(index), norm, self.normed.first(len), joined.first_mut(len))?;
        pass.base.device.add(joined.first(len), self.stream.first_mut(len))
    }
}
