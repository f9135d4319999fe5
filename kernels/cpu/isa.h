/* One name for each exported function and instruction path: ISA(gemm) is cpu_avx2_gemm in the
 * objects compiled for AVX2. RS_ISA comes from the build. */
#ifndef RS_KERNELS_CPU_ISA_H
#define RS_KERNELS_CPU_ISA_H

#define ISA_PASTE2(path, name) cpu_##path##_##name
#define ISA_PASTE(path, name)  ISA_PASTE2(path, name)
#define ISA(name)              ISA_PASTE(RS_ISA, name)

#endif
