"""cublasGemmGroupedBatchedEx through the library that PyTorch has loaded: one call for all adapters' shrinks, one for their expands. Shapes
are host arrays, pointers device arrays; what is fixed for a layer is made before the graph."""
import ctypes

import torch

BF16, COMPUTE_F32, TRANSPOSED, PLAIN = 14, 68, 1, 0  # cudaDataType, cublasComputeType_t, cublasOperation_t


def library():
    for name in ("libcublas.so.13", "libcublas.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NotImplementedError("libcublas was not found")


class Call:
    """Row-major C[m, n] (+)= A[m, k] B[n, k]^T for many problems: column-major, that is C^T = B A^T."""

    def __init__(self, lib, problems, beta):
        """problems: (a, b, c tensors of two dimensions, unit stride in the last)."""
        n = len(problems)
        self.fn, self.n = lib.cublasGemmGroupedBatchedEx, n
        ints = lambda values: (ctypes.c_int * n)(*values)  # noqa: E731
        self.m, self.nn = ints([b.shape[0] for _, b, _ in problems]), ints([a.shape[0] for a, _, _ in problems])
        self.k = ints([a.shape[1] for a, _, _ in problems])
        self.lda, self.ldb, self.ldc = (ints([t[i].stride(0) for t in problems]) for i in (1, 0, 2))
        self.ta, self.tb, self.sizes = ints([TRANSPOSED] * n), ints([PLAIN] * n), ints([1] * n)
        self.alpha, self.beta = (ctypes.c_float * n)(*[1.0] * n), (ctypes.c_float * n)(*[beta] * n)
        pointers = [torch.tensor([t[i].data_ptr() for t in problems], dtype=torch.int64, device="cuda") for i in (1, 0, 2)]
        self.keep = (problems, pointers)
        self.a, self.b, self.c = (ctypes.c_void_p(p.data_ptr()) for p in pointers)

    def __call__(self):
        handle = ctypes.c_void_p(torch.cuda.current_blas_handle())
        rc = self.fn(handle, self.ta, self.tb, self.m, self.nn, self.k, self.alpha, self.a, BF16, self.lda, self.b, BF16, self.ldb, self.beta,
                     self.c, BF16, self.ldc, self.n, self.sizes, COMPUTE_F32)
        if rc:
            raise RuntimeError(f"cublasGemmGroupedBatchedEx returned {rc}")


class CublasGrouped:
    name = "cublas grouped"

    def __init__(self, c):
        self.c, lib = c, library()
        self.a, self.b = c.layers(c.a), c.layers(c.b)
        self.s = torch.zeros(c.n_slice, c.batch, c.rank, dtype=torch.bfloat16, device="cuda")
        self.calls = []
        for layer in range(c.copies):
            shrink, expand = [], []
            for i, r in enumerate(c.ranks):
                lo, hi = c.begins[i], c.begins[i] + c.per
                for j in range(c.n_slice):
                    s = self.s[j, lo:hi, :r]
                    shrink.append((c.x[lo:hi], self.a[layer, i, j, :r], s))
                    columns = slice(c.columns[j], c.columns[j + 1])
                    expand.append((s, self.b[layer, i, columns, :r], c.y[lo:hi, columns]))
            self.calls.append((Call(lib, shrink, 0.0), Call(lib, expand, 1.0)))

    def run(self, layer):
        for call in self.calls[layer]:
            call()
