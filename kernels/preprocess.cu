// Turns frames into a network's input in one pass: resize, colour conversion, normalisation.
//
//   frames  Frame [*]      where each frame lies, and what of it goes where (frame_table.py)
//   out     fp16|fp32 [rows, channels, height, width]
//   dense   the frame of each row of out (dense.cuh); with a null idx, row j is frame j for j < count
//   colour  NetworkColour; scale, offset [channels]: out = scale * pixel + offset, pixels of 0..255
//
// All that depends on a source stands in the table, so one captured graph serves any. A block makes a
// tile of 32 x 32 pixels, a warp every eighth line of it, so that stores coalesce. The grid is fixed by
// the most rows there can be (x: tiles, y: rows); blocks past the count, which only the device knows,
// end at once. A frame may start at any byte and is read in bytes, each tap once for all channels;
// neighbouring threads find theirs in the same sectors.
// Judge: kernels/reference_preprocess.py.
#include "dense.cuh"

constexpr int THREADS = 256;
constexpr int LANES = 32;
constexpr int WARPS = THREADS / LANES;
constexpr int TILE = 32;

enum FrameFormat { FRAME_GREY, FRAME_RGB, FRAME_BGR, FRAME_NV12 };
enum NetworkColour { GREY, RGB, BGR };

struct Window {
  int top, left, height, width;
};

// pixels, chroma          address of the packed pixels or the luma plane; of NV12's chroma pairs
// pitch, chroma_pitch     bytes from a row to the next
// source, target          the part that is resized, and where it lies in the input; no side is longer
//                         than 2^15 - 1, so products of two fit in an int
// luma_offset ... blue_u  NV12 to RGB (frames.py, Yuv)
struct Frame {
  u64 pixels, chroma;
  long long pitch, chroma_pitch;
  Window source, target;
  int format;
  float luma_offset, luma_scale, red_v, green_u, green_v, blue_u;
  int unused;
};

constexpr int PARTS = sizeof(Frame) / sizeof(uint4);
static_assert(sizeof(Frame) == PARTS * sizeof(uint4), "the table is read in parts of 16 bytes");

struct PreprocessArgs {
  const void* frames;
  void* out;
  Dense dense;
  int rows, height, width, colour;
  float scale[3], offset[3];
};

struct Shared {
  int index;
  union {
    uint4 parts[PARTS];
    Frame frame;
  };
};

struct Pixel {
  float red, green, blue;
};

// The two pixels of a line that one of the resized line lies between: first + weight * (second - first).
struct Taps {
  int first, second;
  float weight;
};

// Return the taps of pixel `place` of `target`, in the `source` pixels from `begin` on. In integers: a
// position in the thousands leaves a float too few bits for the weight.
__device__ __forceinline__ Taps taps(int place, int target, int begin, int source) {
  const u32 unit = 2 * target;
  const u32 position = max((2 * place + 1) * source - target, 0);
  const u32 first = position / unit, part = position - first * unit;
  const int last = begin + source - 1;
  return {begin + int(first), min(begin + int(first) + 1, last), float(part) / float(unit)};
}

__device__ __forceinline__ float mix(float first, float second, float weight) {
  return first + weight * (second - first);
}

__device__ __forceinline__ Pixel mix(const Pixel& first, const Pixel& second, float weight) {
  return {mix(first.red, second.red, weight), mix(first.green, second.green, weight),
          mix(first.blue, second.blue, weight)};
}

__device__ __forceinline__ float clamped(float value) {
  return fminf(fmaxf(value, 0.0f), 255.0f);
}

__device__ __forceinline__ Pixel nv12_to_rgb(const Frame& frame, float luma, float u, float v) {
  const float y = frame.luma_scale * (luma - frame.luma_offset);
  return {clamped(y + frame.red_v * v), clamped(y + frame.green_u * u + frame.green_v * v),
          clamped(y + frame.blue_u * u)};
}

// A row of a frame.
template <int FORMAT> struct Line {
  const Frame& frame;
  const u8* pixels;
  const u8* chroma;

  __device__ __forceinline__ Line(const Frame& frame, int row)
      : frame(frame),
        pixels(reinterpret_cast<const u8*>(frame.pixels) + row * frame.pitch),
        chroma(reinterpret_cast<const u8*>(frame.chroma) + (row / 2) * frame.chroma_pitch) {}

  __device__ __forceinline__ Pixel at(int column) const {
    if constexpr (FORMAT == FRAME_GREY) {
      const float luma = read(pixels + column);
      return {luma, luma, luma};
    } else if constexpr (FORMAT == FRAME_NV12) {
      const u8* pair = chroma + column / 2 * 2;
      return nv12_to_rgb(frame, read(pixels + column), read(pair) - 128.0f, read(pair + 1) - 128.0f);
    } else {
      const u8* bytes = pixels + 3 * column;
      const float first = read(bytes), green = read(bytes + 1), last = read(bytes + 2);
      return FORMAT == FRAME_RGB ? Pixel{first, green, last} : Pixel{last, green, first};
    }
  }

  __device__ __forceinline__ Pixel at(const Taps& columns) const {
    return mix(at(columns.first), at(columns.second), columns.weight);
  }
};

__device__ __forceinline__ void store(float* address, float value) { write(address, value); }

__device__ __forceinline__ void store(fp16* address, float value) { write(address, to_fp16(value)); }

// The planes of one row of out.
template <class T> struct Planes {
  const PreprocessArgs& args;
  long long size;
  int channels;
  T* first;

  __device__ __forceinline__ Planes(const PreprocessArgs& args, int row)
      : args(args),
        size((long long)args.height * args.width),
        channels(args.colour == GREY ? 1 : 3),
        first(static_cast<T*>(args.out) + size * channels * row) {}

  __device__ __forceinline__ void put(int channel, int place, float value) const {
    store(first + channel * size + place, args.scale[channel] * value + args.offset[channel]);
  }

  template <int FORMAT> __device__ __forceinline__ void put(int place, const Pixel& pixel) const {
    const auto [red, green, blue] = pixel;
    if (args.colour == GREY) {
      put(0, place, FORMAT == FRAME_GREY ? red : 0.299f * red + 0.587f * green + 0.114f * blue);
    } else {
      put(0, place, args.colour == RGB ? red : blue);
      put(1, place, green);
      put(2, place, args.colour == RGB ? blue : red);
    }
  }

  // The border of a letterbox is the mean, which normalises to zero.
  __device__ __forceinline__ void put_border(int place) const {
    for (int channel = 0; channel < channels; ++channel)
      store(first + channel * size + place, 0.0f);
  }
};

__device__ __forceinline__ bool within(int place, int begin, int length) {
  return place >= begin && place < begin + length;
}

// Make this thread's pixels, column x of lines y, y + 8, ... of a tile.
template <class T, int FORMAT>
__device__ __forceinline__ void fill(const Planes<T>& planes, const Frame& frame, int x, int y) {
  const Window &source = frame.source, &target = frame.target;
  const int width = planes.args.width, end = min(y + TILE, planes.args.height);
  if (x >= width) return;
  const bool shown = within(x, target.left, target.width);
  const Taps columns =
      taps(shown ? x - target.left : 0, target.width, source.left, source.width);
  for (; y < end; y += WARPS) {
    const int place = y * width + x;
    if (!shown || !within(y, target.top, target.height)) {
      planes.put_border(place);
      continue;
    }
    const Taps rows = taps(y - target.top, target.height, source.top, source.height);
    const Line<FORMAT> upper(frame, rows.first), lower(frame, rows.second);
    planes.template put<FORMAT>(place, mix(upper.at(columns), lower.at(columns), rows.weight));
  }
}

__device__ __forceinline__ int frame_of(const Dense& dense, int row) {
  if (dense.idx) return source_of(dense, row);
  return row < read(dense.count) ? row : NOT_WRITTEN;
}

template <class T>
__device__ __forceinline__ void preprocess(const PreprocessArgs& args, Shared& shared) {
  const uint4* table = static_cast<const uint4*>(args.frames);
  const int tiles = (args.width + TILE - 1) / TILE;  // side by side
  const int x = int(blockIdx.x) % tiles * TILE + int(threadIdx.x) % LANES;
  const int y = int(blockIdx.x) / tiles * TILE + int(threadIdx.x) / LANES;
  for (int row = blockIdx.y; row < args.rows; row += gridDim.y) {
    if (threadIdx.x < PARTS) {
      const int index = frame_of(args.dense, row);
      if (index != NOT_WRITTEN)
        shared.parts[threadIdx.x] = read(table + (long long)index * PARTS + threadIdx.x);
      if (threadIdx.x == 0) shared.index = index;
    }
    __syncthreads();
    if (shared.index != NOT_WRITTEN) {
      const Planes<T> planes(args, row);
      switch (shared.frame.format) {
        case FRAME_GREY: fill<T, FRAME_GREY>(planes, shared.frame, x, y); break;
        case FRAME_RGB: fill<T, FRAME_RGB>(planes, shared.frame, x, y); break;
        case FRAME_BGR: fill<T, FRAME_BGR>(planes, shared.frame, x, y); break;
        case FRAME_NV12: fill<T, FRAME_NV12>(planes, shared.frame, x, y); break;
      }
    }
    __syncthreads();  // before the next row's frame takes its place
  }
}

#define PREPROCESS(TYPE, name)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) name(const PreprocessArgs args) {    \
    SHARED(Shared, shared);                                                                  \
    preprocess<TYPE>(args, shared);                                                          \
  }

PREPROCESS(fp16, preprocess_fp16)
PREPROCESS(float, preprocess_fp32)
