// The element-wise work between the matrix products of a decoder layer, one row of tokens at a time.
//
// Each function reads its row once, keeps it in a float buffer that fits the second-level cache, and writes what the next
// product needs. Rows are shared among torch's own OpenMP threads; every row is computed by one thread, so results do not
// depend on how many there are. What each function means is said by its twin in eager.py; a test compares the two.
//
// Letters: T rows, K inputs of a product, N outputs, F width of the MLP, R rank, H block of the Hadamard rotation.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
#define ROWS _Pragma("omp parallel for schedule(static)")
#define APART __attribute__((noinline))  // inlined into the long loops below, these lose their vectors
#define SIMD _Pragma("omp simd")  // iterations are independent: buffers never overlap

namespace {

using bf16 = uint16_t;
using row = std::vector<float>;
constexpr float kTiny = 1e-20f;

inline float widen(float x) { return x; }
inline float widen(int32_t x) { return static_cast<float>(x); }
inline float widen(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, bf16* out) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *out = static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Hadamard rotation of blocks of H elements that stand n / H apart: [H][n / H], mixed along the first axis.
inline void butterfly8(float* __restrict v, int64_t step, int64_t run) {
  SIMD
  for (int i = 0; i < int(run); ++i) {
    float a = v[i], b = v[i + step], c = v[i + 2 * step], d = v[i + 3 * step];
    float e = v[i + 4 * step], f = v[i + 5 * step], g = v[i + 6 * step], h = v[i + 7 * step];
    float ab = a + b, a_b = a - b, cd = c + d, c_d = c - d, ef = e + f, e_f = e - f, gh = g + h, g_h = g - h;
    float p = ab + cd, q = a_b + c_d, r = ab - cd, s = a_b - c_d;
    float t = ef + gh, u = e_f + g_h, w = ef - gh, x = e_f - g_h;
    v[i] = p + t, v[i + step] = q + u, v[i + 2 * step] = r + w, v[i + 3 * step] = s + x;
    v[i + 4 * step] = p - t, v[i + 5 * step] = q - u, v[i + 6 * step] = r - w, v[i + 7 * step] = s - x;
  }
}

APART void rotate(float* v, int64_t n, int64_t H) {
  if (H <= 1) return;
  const int64_t S = n / H;
  if (H == 64) {
    for (int64_t a = 0; a < 8; ++a) butterfly8(v + a * 8 * S, S, S);
    butterfly8(v, 8 * S, 8 * S);
  } else {
    for (int64_t half = 1; half < H; half *= 2)
      for (int64_t j = 0; j < H; j += 2 * half)
        SIMD
        for (int i = int(j * S); i < int((j + half) * S); ++i) {
          float a = v[i], b = v[i + half * S];
          v[i] = a + b, v[i + half * S] = a - b;
        }
  }
  const float unit = 1.0f / std::sqrt(static_cast<float>(H));
  SIMD
  for (int i = 0; i < int(n); ++i) v[i] *= unit;
}

// Round a row to int8, up to `levels`; returns its scale.
APART float round_row(const float* __restrict v, int64_t n, float levels, int8_t* __restrict out) {
  float top = kTiny;
  _Pragma("omp simd reduction(max : top)")
  for (int i = 0; i < int(n); ++i) top = std::fmax(top, std::fabs(v[i]));
  const float inverse = levels / top;
  SIMD
  for (int i = 0; i < int(n); ++i) out[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyintf(v[i] * inverse)));
  return top / levels;
}

// Dropout without a stored mask: the same key gives the same mask again in the backward pass.
struct Key {
  uint32_t first, second;
};
inline Key row_key(uint64_t seed, uint64_t t) {  // splitmix64 (Steele, Lea, Flood 2014)
  uint64_t z = seed + (t + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}
inline uint32_t draw(Key key, uint32_t i) {
  uint32_t x = (i * 0x9e3779b1u) ^ key.first;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x ^= key.second;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
// Round a row of non-negative numbers to int8, up or down by a draw: on average nothing is lost, however small it is.
APART float round_row_fairly(const float* __restrict v, int64_t n, float levels, Key key, int8_t* __restrict out) {
  float top = kTiny;
  _Pragma("omp simd reduction(max : top)")
  for (int i = 0; i < int(n); ++i) top = std::fmax(top, v[i]);
  const float inverse = levels / top;
  SIMD
  for (int i = 0; i < int(n); ++i) {
    const float raised = v[i] * inverse + static_cast<float>(draw(key, static_cast<uint32_t>(i)) >> 8) * 0x1p-24f;
    out[i] = static_cast<int8_t>(static_cast<int32_t>(std::fmin(raised, levels)));
  }
  return top / levels;
}

struct Dropout {
  uint32_t threshold;  // draws below it are dropped
  float keep;          // what the rest is multiplied by
  uint64_t seed;
};

template <class C>
APART void drop_row(const float* __restrict v, int64_t n, const Dropout& dropout, uint64_t t, C* __restrict out) {
  if (dropout.threshold == 0) {
    SIMD
    for (int i = 0; i < int(n); ++i) narrow(v[i], out + i);
    return;
  }
  const Key key = row_key(dropout.seed, t);
  const uint32_t threshold = dropout.threshold;
  const float keep = dropout.keep;
  SIMD
  for (int i = 0; i < int(n); ++i) {
    narrow(v[i] * (draw(key, static_cast<uint32_t>(i)) >= threshold ? keep : 0.0f), out + i);
  }
}

// v += dropout(extra).
APART void add_dropped(float* __restrict v, const float* __restrict extra, int64_t n, const Dropout& dropout, uint64_t t) {
  const Key key = row_key(dropout.seed, t);
  const uint32_t threshold = dropout.threshold;
  const float keep = dropout.keep;
  SIMD
  for (int i = 0; i < int(n); ++i)
    v[i] += extra[i] * (draw(key, static_cast<uint32_t>(i)) >= threshold ? keep : 0.0f);
}

// v += t · B for one row, B being [R][n].
APART void add_low_rank(float* __restrict v, int64_t n, const float* t, const float* __restrict B, int64_t R) {
  constexpr int64_t kRun = 1024;  // of the output, so that it stays in the first-level cache
  for (int64_t from = 0; from < n; from += kRun) {
    const int64_t to = from + kRun < n ? from + kRun : n;
    int64_t r = 0;
    for (; r + 4 <= R; r += 4) {
      const float *b0 = B + r * n, *b1 = b0 + n, *b2 = b1 + n, *b3 = b2 + n;
      const float t0 = t[r], t1 = t[r + 1], t2 = t[r + 2], t3 = t[r + 3];
      SIMD
      for (int i = int(from); i < int(to); ++i) v[i] += (t0 * b0[i] + t1 * b1[i]) + (t2 * b2[i] + t3 * b3[i]);
    }
    for (; r < R; ++r) {
      const float* b = B + r * n;
      SIMD
      for (int i = int(from); i < int(to); ++i) v[i] += t[r] * b[i];
    }
  }
}

template <class A>
APART void read_row(const A* __restrict acc, int64_t n, float scale, const float* __restrict column, float* __restrict v) {
  if (column)
    SIMD
    for (int i = 0; i < int(n); ++i) v[i] = widen(acc[i]) * scale * column[i];
  else
    SIMD
    for (int i = 0; i < int(n); ++i) v[i] = widen(acc[i]) * scale;
}

// One projection of a group: where it stands in the group's outputs, and its low-rank part.
struct Part {
  int64_t width, block, rank;
  const float* B;  // [rank][width], or null
};

template <class X>
void quantise_rows(const X* x, int64_t T, int64_t K, const Part* parts, int64_t P, const float* column, float levels, int8_t* q,
                   float* s) {
#pragma omp parallel
  {
    row v(K);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      SIMD
      for (int i = 0; i < int(K); ++i) v[i] = widen(x[t * K + i]);
      int64_t at = 0;
      for (int64_t p = 0; p < P; at += parts[p++].width) rotate(v.data() + at, parts[p].width, parts[p].block);
      if (column)
        SIMD
        for (int i = 0; i < int(K); ++i) v[i] *= column[i];
      s[t] = round_row(v.data(), K, levels, q + t * K);
    }
  }
}

template <class C>
void normalise_rows(const float* x, int64_t T, int64_t D, const float* gain, float eps, int64_t block, float levels,
                    Dropout dropout, float* rstd, int8_t* q, float* s, C* plain, C* dropped) {
#pragma omp parallel
  {
    row v(D);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      const float* in = x + t * D;
      float square = 0;
      _Pragma("omp simd reduction(+ : square)")
      for (int i = 0; i < int(D); ++i) square += in[i] * in[i];
      const float r = 1.0f / std::sqrt(square / static_cast<float>(D) + eps);
      rstd[t] = r;
      SIMD
      for (int i = 0; i < int(D); ++i) v[i] = in[i] * r * gain[i];
      if (dropped) drop_row(v.data(), D, dropout, t, dropped + t * D);
      if (plain)
        SIMD
        for (int i = 0; i < int(D); ++i) narrow(v[i], plain + t * D + i);
      if (q) {
        rotate(v.data(), D, block);
        s[t] = round_row(v.data(), D, levels, q + t * D);
      }
    }
  }
}

template <class A, class O>
void finish_rows(const A* acc, const float* s, const float* column, int64_t T, int64_t N, const Part* parts, int64_t P,
                 const float* bias, const float* low, int64_t R, Dropout dropout, const float* add, O* out) {
#pragma omp parallel
  {
    row v(N), extra(dropout.threshold ? N : 0);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      read_row(acc + t * N, N, s ? s[t] : 1.0f, column, v.data());
      int64_t at = 0, rank = 0;
      for (int64_t p = 0; p < P; ++p) {
        const Part& part = parts[p];
        rotate(v.data() + at, part.width, part.block);
        if (part.B && !dropout.threshold) add_low_rank(v.data() + at, part.width, low + t * R + rank, part.B, part.rank);
        if (part.B && dropout.threshold) {
          std::fill(extra.begin(), extra.begin() + part.width, 0.0f);
          add_low_rank(extra.data(), part.width, low + t * R + rank, part.B, part.rank);
          add_dropped(v.data() + at, extra.data(), part.width, dropout, t);
        }
        at += part.width, rank += part.rank;
      }
      if (bias)
        SIMD
        for (int i = 0; i < int(N); ++i) v[i] += bias[i];
      if (add)
        SIMD
        for (int i = 0; i < int(N); ++i) v[i] += add[t * N + i];
      SIMD
      for (int i = 0; i < int(N); ++i) narrow(v[i], out + t * N + i);
    }
  }
}

// exp(89) is infinite, and -ffast-math makes 1 / infinity not a number
inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(std::fmin(-x, 80.0f))); }

template <class A, class C>
void swiglu_rows(const A* acc, const float* s, const float* column, int64_t T, int64_t F, const Part* parts, const float* low,
                 int64_t block, float levels, Dropout dropout, C* gate_up, int8_t* q, float* q_scale, C* plain, C* dropped) {
  const int64_t R = parts[0].rank + parts[1].rank;
#pragma omp parallel
  {
    row v(2 * F), h(F);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      read_row(acc + t * 2 * F, 2 * F, s ? s[t] : 1.0f, column, v.data());
      float *g = v.data(), *u = g + F;
      rotate(g, F, parts[0].block);
      rotate(u, F, parts[1].block);
      if (parts[0].B) add_low_rank(g, F, low + t * R, parts[0].B, parts[0].rank);
      if (parts[1].B) add_low_rank(u, F, low + t * R + parts[0].rank, parts[1].B, parts[1].rank);
      if (gate_up)
        SIMD
        for (int i = 0; i < int(2 * F); ++i) narrow(v[i], gate_up + t * 2 * F + i);
      SIMD
      for (int i = 0; i < int(F); ++i) h[i] = g[i] * sigmoid(g[i]) * u[i];
      if (dropped) drop_row(h.data(), F, dropout, t, dropped + t * F);
      if (plain)
        SIMD
        for (int i = 0; i < int(F); ++i) narrow(h[i], plain + t * F + i);
      if (q) {
        rotate(h.data(), F, block);
        q_scale[t] = round_row(h.data(), F, levels, q + t * F);
      }
    }
  }
}

template <class A, class C>
void swiglu_backward_rows(const A* acc, const float* s, int64_t T, int64_t F, int64_t block, const float* low, int64_t R,
                          const float* A_down, Dropout dropout, C* gate_up, const float* column, const int64_t* blocks,
                          float levels, int8_t* q, float* q_scale, C* dropped) {
#pragma omp parallel
  {
    row dh(F), v(2 * F), extra(F);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      read_row(acc + t * F, F, s ? s[t] : 1.0f, static_cast<const float*>(nullptr), dh.data());
      rotate(dh.data(), F, block);
      if (A_down && !dropout.threshold) add_low_rank(dh.data(), F, low + t * R, A_down, R);
      if (A_down && dropout.threshold) {
        std::fill(extra.begin(), extra.end(), 0.0f);
        add_low_rank(extra.data(), F, low + t * R, A_down, R);
        add_dropped(dh.data(), extra.data(), F, dropout, t);
      }
      C *g = gate_up + t * 2 * F, *u = g + F;
      float *dg = v.data(), *du = dg + F;
      SIMD
      for (int i = 0; i < int(F); ++i) {
        const float gi = widen(g[i]), ui = widen(u[i]), sg = sigmoid(gi), silu = gi * sg;
        extra[i] = silu * ui;
        du[i] = dh[i] * silu;
        dg[i] = dh[i] * ui * (sg + silu * (1.0f - sg));
      }
      if (dropped) drop_row(extra.data(), F, dropout, t, dropped + t * F);
      SIMD
      for (int i = 0; i < int(2 * F); ++i) narrow(v[i], g + i);  // the gradient takes the place of gate and up
      if (q) {
        rotate(dg, F, blocks[0]);
        rotate(du, F, blocks[1]);
        SIMD
        for (int i = 0; i < int(2 * F); ++i) v[i] *= column[i];
        q_scale[t] = round_row(v.data(), 2 * F, levels, q + t * 2 * F);
      }
    }
  }
}

}  // namespace

// A pointer is untyped at this border; `kind` says what stands behind it: 0 float32, 1 bfloat16, 2 int32.
#define DROPOUT Dropout{threshold, keep, seed}

API void quantise(const void* x, int kind, int64_t T, int64_t K, const Part* parts, int64_t P, const float* column,
                  float levels, int8_t* q, float* s) {
  kind == 1 ? quantise_rows(static_cast<const bf16*>(x), T, K, parts, P, column, levels, q, s)
            : quantise_rows(static_cast<const float*>(x), T, K, parts, P, column, levels, q, s);
}

API void rotate_long(float* v, int64_t n, int64_t H) {  // one long vector; threads share its columns
  if (H <= 1) return;
  const int64_t S = n / H, run = 4096;
#pragma omp parallel
  {
    row w(H * run);
#pragma omp for schedule(static)
    for (int64_t from = 0; from < S; from += run) {
      const int64_t m = S - from < run ? S - from : run;
      for (int64_t j = 0; j < H; ++j) std::memcpy(w.data() + j * m, v + j * S + from, m * 4);
      rotate(w.data(), H * m, H);
      for (int64_t j = 0; j < H; ++j) std::memcpy(v + j * S + from, w.data() + j * m, m * 4);
    }
  }
}

API void normalise(const float* x, int64_t T, int64_t D, const float* gain, float eps, int64_t block, float levels,
                   uint32_t threshold, float keep, uint64_t seed, int kind, float* rstd, int8_t* q, float* s, void* plain, void* dropped) {
  kind == 1 ? normalise_rows(x, T, D, gain, eps, block, levels, DROPOUT, rstd, q, s, static_cast<bf16*>(plain),
                             static_cast<bf16*>(dropped))
            : normalise_rows(x, T, D, gain, eps, block, levels, DROPOUT, rstd, q, s, static_cast<float*>(plain),
                             static_cast<float*>(dropped));
}

API void normalise_backward(const float* grad, const float* x, const float* rstd, const float* gain, int64_t T, int64_t D,
                            const float* add, float* out) {
  ROWS
  for (int64_t t = 0; t < T; ++t) {
    const float *g = grad + t * D, *in = x + t * D;
    float dot = 0;
    _Pragma("omp simd reduction(+ : dot)")
    for (int i = 0; i < int(D); ++i) dot += g[i] * gain[i] * in[i];
    const float r = rstd[t], pull = dot * r * r * r / static_cast<float>(D);
    SIMD
    for (int i = 0; i < int(D); ++i) out[t * D + i] = g[i] * gain[i] * r - in[i] * pull + (add ? add[t * D + i] : 0.0f);
  }
}

API void drop(const void* x, int kind, int64_t T, int64_t K, uint32_t threshold, float keep, uint64_t seed, void* out) {
#pragma omp parallel
  {
    row v(K);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      if (kind == 1) {
        SIMD
        for (int i = 0; i < int(K); ++i) v[i] = widen(static_cast<const bf16*>(x)[t * K + i]);
        drop_row(v.data(), K, DROPOUT, t, static_cast<bf16*>(out) + t * K);
      } else {
        drop_row(static_cast<const float*>(x) + t * K, K, DROPOUT, t, static_cast<float*>(out) + t * K);
      }
    }
  }
}

template <class A>
static void finish_as(const A* acc, const float* s, const float* column, int64_t T, int64_t N, const Part* parts, int64_t P,
                      const float* bias, const float* low, int64_t R, Dropout dropout, const float* add, void* out, int out_kind) {
  out_kind == 1 ? finish_rows(acc, s, column, T, N, parts, P, bias, low, R, dropout, add, static_cast<bf16*>(out))
                : finish_rows(acc, s, column, T, N, parts, P, bias, low, R, dropout, add, static_cast<float*>(out));
}

API void finish(const void* acc, int kind, const float* s, const float* column, int64_t T, int64_t N, const Part* parts, int64_t P,
                const float* bias, const float* low, int64_t R, uint32_t threshold, float keep, uint64_t seed, const float* add,
                void* out, int out_kind) {
  if (kind == 2)
    finish_as(static_cast<const int32_t*>(acc), s, column, T, N, parts, P, bias, low, R, DROPOUT, add, out, out_kind);
  else if (kind == 1)
    finish_as(static_cast<const bf16*>(acc), s, column, T, N, parts, P, bias, low, R, DROPOUT, add, out, out_kind);
  else
    finish_as(static_cast<const float*>(acc), s, column, T, N, parts, P, bias, low, R, DROPOUT, add, out, out_kind);
}

#define SWIGLU(ACC, C)                                                                                                        \
  swiglu_rows(static_cast<const ACC*>(acc), s, column, T, F, parts, low, block, levels, DROPOUT, static_cast<C*>(gate_up), \
              q, q_scale, static_cast<C*>(plain), static_cast<C*>(dropped))

API void swiglu(const void* acc, int kind, const float* s, const float* column, int64_t T, int64_t F, const Part* parts,
                const float* low, int64_t block, float levels, uint32_t threshold, float keep, uint64_t seed, int out_kind,
                void* gate_up, int8_t* q, float* q_scale, void* plain, void* dropped) {
  if (kind == 2 && out_kind == 1) SWIGLU(int32_t, bf16);
  if (kind == 2 && out_kind == 0) SWIGLU(int32_t, float);
  if (kind == 1) SWIGLU(bf16, bf16);
  if (kind == 0 && out_kind == 1) SWIGLU(float, bf16);
  if (kind == 0 && out_kind == 0) SWIGLU(float, float);
}

#define SWIGLU_BACKWARD(ACC, C)                                                                                                \
  swiglu_backward_rows(static_cast<const ACC*>(acc), s, T, F, block, low, R, A_down, DROPOUT, static_cast<C*>(gate_up), column, \
                       blocks, levels, q, q_scale, static_cast<C*>(dropped))

API void swiglu_backward(const void* acc, int kind, const float* s, int64_t T, int64_t F, int64_t block, const float* low,
                         int64_t R, const float* A_down, uint32_t threshold, float keep, uint64_t seed, int out_kind,
                         void* gate_up, const float* column, const int64_t* blocks, float levels, int8_t* q, float* q_scale,
                         void* dropped) {
  if (kind == 2 && out_kind == 1) SWIGLU_BACKWARD(int32_t, bf16);
  if (kind == 2 && out_kind == 0) SWIGLU_BACKWARD(int32_t, float);
  if (kind == 1) SWIGLU_BACKWARD(bf16, bf16);
  if (kind == 0 && out_kind == 1) SWIGLU_BACKWARD(float, bf16);
  if (kind == 0 && out_kind == 0) SWIGLU_BACKWARD(float, float);
}

// Rotary positions on x[T][heads][E], in place; sign -1 undoes them.
template <class C>
static void rope_rows(C* x, int64_t T, int64_t stride, int64_t heads, int64_t E, const float* cosine, const float* sine, float sign) {
  ROWS
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      C* v = x + t * stride + h * E;
      const float *c = cosine + t * (E / 2), *s = sine + t * (E / 2);
      SIMD
      for (int i = 0; i < int(E / 2); ++i) {
        const float a = widen(v[i]), b = widen(v[i + E / 2]), turn = sign * s[i];
        narrow(a * c[i] - b * turn, v + i);
        narrow(b * c[i] + a * turn, v + i + E / 2);
      }
    }
}

API void rope(void* x, int kind, int64_t T, int64_t stride, int64_t heads, int64_t E, const float* cosine, const float* sine,
              float sign) {
  kind == 1 ? rope_rows(static_cast<bf16*>(x), T, stride, heads, E, cosine, sine, sign)
            : rope_rows(static_cast<float*>(x), T, stride, heads, E, cosine, sine, sign);
}

// One decoding step of attention. Each row puts its key and value into buffers of its own, [G][capacity][E], and looks at
// all that is there; rows of length 0 are idle.
template <class C>
static void attend_each(const C* q, const C* k, const C* v, int64_t stride, int64_t R, int64_t H, int64_t G, int64_t E,
                        C* const* keys, C* const* values, const int64_t* capacity, const int64_t* length, C* out) {
  const int64_t shared = H / G;
  const float scale = 1.0f / std::sqrt(static_cast<float>(E));
#pragma omp parallel
  {
    row share(*std::max_element(length, length + R)), query(E), mix(E);
#pragma omp for schedule(dynamic)  // one thread computes a head of a row, whichever
    for (int64_t job = 0; job < R * G; ++job) {
      const int64_t r = job / G, g = job % G, n = length[r];
      C* to = out + (r * H + g * shared) * E;
      if (n == 0) {
        std::memset(to, 0, shared * E * sizeof(C));
        continue;
      }
      C *K = keys[r] + g * capacity[r] * E, *V = values[r] + g * capacity[r] * E;
      std::memcpy(K + (n - 1) * E, k + r * stride + g * E, E * sizeof(C));
      std::memcpy(V + (n - 1) * E, v + r * stride + g * E, E * sizeof(C));
      for (int64_t h = 0; h < shared; ++h, to += E) {
        const C* from = q + r * stride + (g * shared + h) * E;
        for (int64_t e = 0; e < E; ++e) query[e] = widen(from[e]) * scale, mix[e] = 0;
        float top = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n; ++i) {
          float dot = 0;
          _Pragma("omp simd reduction(+ : dot)")
          for (int e = 0; e < int(E); ++e) dot += query[e] * widen(K[i * E + e]);
          share[i] = dot, top = std::fmax(top, dot);
        }
        for (int64_t i = 0; i < n; ++i) {
          const float weight = std::exp(share[i] - top);
          sum += weight;
          SIMD
          for (int e = 0; e < int(E); ++e) mix[e] += weight * widen(V[i * E + e]);
        }
        for (int64_t e = 0; e < E; ++e) narrow(mix[e] / sum, to + e);
      }
    }
  }
}

API void attend_rows(const void* q, const void* k, const void* v, int kind, int64_t stride, int64_t R, int64_t H, int64_t G, int64_t E,
                     void* const* keys, void* const* values, const int64_t* capacity, const int64_t* length, void* out) {
#define ATTEND(C)                                                                                                       \
  attend_each(static_cast<const C*>(q), static_cast<const C*>(k), static_cast<const C*>(v), stride, R, H, G, E,         \
              reinterpret_cast<C* const*>(keys), reinterpret_cast<C* const*>(values), capacity, length, static_cast<C*>(out))
  kind == 1 ? ATTEND(bf16) : ATTEND(float);
}

// Cross-entropy of rows of logits against one target each; the logits become the slope, softmax - onehot.
template <class C>
APART static float slope_row(C* __restrict v, int64_t V, int64_t target) {
  float top = -INFINITY, sum = 0;
  _Pragma("omp simd reduction(max : top)")
  for (int i = 0; i < int(V); ++i) top = std::fmax(top, widen(v[i]));
  const float chosen = widen(v[target]);
  _Pragma("omp simd reduction(+ : sum)")
  for (int i = 0; i < int(V); ++i) sum += std::exp(widen(v[i]) - top);
  const float share = 1.0f / sum;
  SIMD
  for (int i = 0; i < int(V); ++i) narrow(std::exp(widen(v[i]) - top) * share, v + i);
  narrow(std::exp(chosen - top) * share - 1.0f, v + target);
  return top + std::log(sum) - chosen;
}

// The same, the slope as int8 rows for the next product. What is large in a row is kept apart, exact: rounded with the same
// step as a share near 1, all small ones would vanish; the smallest vanish still, so they are rounded by a draw. Shares add
// up to 1, so at most kLarge are beyond 1 / kLarge.
constexpr int64_t kLarge = 64;

template <class C>
APART static void slope_rounded_row(const C* __restrict logits, const float* __restrict column, int64_t V, int64_t target,
                                    float levels, Key key, float* __restrict v, int8_t* __restrict q, float* s, int64_t* at, float* large, float* loss) {
  float top = -INFINITY, sum = 0;
  _Pragma("omp simd reduction(max : top)")
  for (int i = 0; i < int(V); ++i) top = std::fmax(top, widen(logits[i]));
  _Pragma("omp simd reduction(+ : sum)")
  for (int i = 0; i < int(V); ++i) {
    v[i] = std::exp(widen(logits[i]) - top);
    sum += v[i];
  }
  const float unit = 1.0f / sum, limit = sum / static_cast<float>(kLarge);
  *loss = top + std::log(sum) - widen(logits[target]);
  at[0] = target;
  large[0] = v[target] * unit - 1.0f;
  v[target] = 0;
  int64_t found = 1;
  for (int64_t from = 0; from < V; from += 64) {
    const int64_t to = std::min(from + 64, V);
    float block = 0;
    _Pragma("omp simd reduction(max : block)")
    for (int i = int(from); i < int(to); ++i) block = std::fmax(block, v[i]);
    if (block <= limit) continue;
    for (int64_t i = from; i < to; ++i)
      if (v[i] > limit && found < kLarge) {
        at[found] = i;
        large[found++] = v[i] * unit;
        v[i] = 0;
      }
  }
  for (; found < kLarge; ++found) at[found] = target, large[found] = 0;
  SIMD
  for (int i = 0; i < int(V); ++i) v[i] *= unit * column[i];
  *s = round_row_fairly(v, V, levels, key, q);
}

template <class C>
static void slope_rounded_rows(const C* logits, const float* column, int64_t T, int64_t V, const int64_t* target, float levels,
                               uint64_t seed, int8_t* q, float* s, int64_t* at, float* large, float* loss) {
#pragma omp parallel
  {
    row v(V);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t)
      slope_rounded_row(logits + t * V, column, V, target[t], levels, row_key(seed, t), v.data(), q + t * V, s + t, at + t * kLarge,
                        large + t * kLarge, loss + t);
  }
}

API void slope_rounded(const void* logits, int kind, const float* column, int64_t T, int64_t V, const int64_t* target, float levels,
                       uint64_t seed, int8_t* q, float* s, int64_t* at, float* large, float* loss) {
  kind == 1 ? slope_rounded_rows(static_cast<const bf16*>(logits), column, T, V, target, levels, seed, q, s, at, large, loss)
            : slope_rounded_rows(static_cast<const float*>(logits), column, T, V, target, levels, seed, q, s, at, large, loss);
}

API void slope(void* logits, int kind, int64_t T, int64_t V, const int64_t* target, float* loss) {
  ROWS
  for (int64_t t = 0; t < T; ++t)
    loss[t] = kind == 1 ? slope_row(static_cast<bf16*>(logits) + t * V, V, target[t])
                        : slope_row(static_cast<float*>(logits) + t * V, V, target[t]);
}
