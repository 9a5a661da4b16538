using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// Products of many rows, by cuBLASLt: y = x·wᵀ with bf16 factors and fp32 sums. The algorithm is chosen once for a weight's shape and a power of
/// two of rows, so that a row's sums do not depend on how many rows there are beside it within that power.
/// </summary>
internal sealed unsafe partial class MatrixLibrary : IDisposable
{
    public const long WorkspaceBytes = 64 << 20;

    private const int Real32 = 0, Real16B = 14, Compute32 = 68, TransposeA = 3, MaxWorkspace = 1;
    private readonly Dictionary<(int Outputs, int Inputs, int Rows), Algorithm> algorithms = [];
    private readonly nint handle, description, preference;
    private readonly ulong workspace;

    public MatrixLibrary(ulong workspace)
    {
        this.workspace = workspace;
        Check(cublasLtCreate(out handle), nameof(cublasLtCreate));
        Check(cublasLtMatmulDescCreate(out description, Compute32, Real32), nameof(cublasLtMatmulDescCreate));
        var transpose = 1;
        Check(cublasLtMatmulDescSetAttribute(description, TransposeA, &transpose, sizeof(int)), nameof(cublasLtMatmulDescSetAttribute));
        Check(cublasLtMatmulPreferenceCreate(out preference), nameof(cublasLtMatmulPreferenceCreate));
        var most = (ulong)WorkspaceBytes;
        Check(cublasLtMatmulPreferenceSetAttribute(preference, MaxWorkspace, &most, sizeof(ulong)), nameof(cublasLtMatmulPreferenceSetAttribute));
    }

    /// <summary>y (rows, outputs) = x (rows, inputs) · w (outputs, inputs)ᵀ; strides in elements.</summary>
    public void Multiply(ulong x, int xStride, ulong w, int wStride, ulong y, int yStride, int rows, int outputs, int inputs, nint stream)
    {
        // The library counts columns first: yᵀ = w'ᵀ · x' where w' and x' are our rows read as columns.
        Check(cublasLtMatrixLayoutCreate(out var a, Real16B, (ulong)inputs, (ulong)outputs, wStride), nameof(cublasLtMatrixLayoutCreate));
        Check(cublasLtMatrixLayoutCreate(out var b, Real16B, (ulong)inputs, (ulong)rows, xStride), nameof(cublasLtMatrixLayoutCreate));
        Check(cublasLtMatrixLayoutCreate(out var d, Real32, (ulong)outputs, (ulong)rows, yStride), nameof(cublasLtMatrixLayoutCreate));
        float one = 1, zero = 0;
        var bucket = (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)rows);
        if (!algorithms.TryGetValue((outputs, inputs, bucket), out var algorithm))
        {
            // For the power of two itself, so that the choice does not depend on who comes first.
            Check(cublasLtMatrixLayoutCreate(out var most, Real16B, (ulong)inputs, (ulong)bucket, xStride), nameof(cublasLtMatrixLayoutCreate));
            Check(cublasLtMatrixLayoutCreate(out var all, Real32, (ulong)outputs, (ulong)bucket, yStride), nameof(cublasLtMatrixLayoutCreate));
            algorithms.Add((outputs, inputs, bucket), algorithm = Choose(a, most, all));
            _ = cublasLtMatrixLayoutDestroy(most);
            _ = cublasLtMatrixLayoutDestroy(all);
        }
        Check(cublasLtMatmul(handle, description, &one, w, a, x, b, &zero, y, d, y, d, &algorithm, workspace, (nuint)WorkspaceBytes, stream), nameof(cublasLtMatmul));
        _ = cublasLtMatrixLayoutDestroy(a);
        _ = cublasLtMatrixLayoutDestroy(b);
        _ = cublasLtMatrixLayoutDestroy(d);
    }

    private Algorithm Choose(nint a, nint b, nint d)
    {
        Heuristic best;
        Check(cublasLtMatmulAlgoGetHeuristic(handle, description, a, b, d, d, preference, 1, &best, out var found), nameof(cublasLtMatmulAlgoGetHeuristic));
        return found > 0 ? best.Algorithm : throw new CudaException(nameof(cublasLtMatmulAlgoGetHeuristic), "no algorithm for this shape");
    }

    private static void Check(int status, string call)
    {
        if (status != 0) throw new CudaException(call, $"cuBLAS status {status}");
    }

    public void Dispose()
    {
        _ = cublasLtMatmulPreferenceDestroy(preference);
        _ = cublasLtMatmulDescDestroy(description);
        _ = cublasLtDestroy(handle);
    }

    /// <summary>cublasLtMatmulAlgo_t.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 64)]
    private struct Algorithm
    {
        public ulong First;
    }

    /// <summary>cublasLtMatmulHeuristicResult_t.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 96)]
    private struct Heuristic
    {
        public Algorithm Algorithm;
    }

    [LibraryImport(Libraries.Blas)] private static partial int cublasLtCreate(out nint handle);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtDestroy(nint handle);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulDescCreate(out nint description, int computeType, int scaleType);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulDescDestroy(nint description);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulDescSetAttribute(nint description, int attribute, void* value, nuint size);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatrixLayoutCreate(out nint layout, int type, ulong rows, ulong cols, long stride);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatrixLayoutDestroy(nint layout);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulPreferenceCreate(out nint preference);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulPreferenceDestroy(nint preference);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulPreferenceSetAttribute(nint preference, int attribute, void* value, nuint size);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmulAlgoGetHeuristic(nint handle, nint description, nint a, nint b, nint c, nint d, nint preference, int requested, Heuristic* results, out int found);
    [LibraryImport(Libraries.Blas)] private static partial int cublasLtMatmul(nint handle, nint description, void* alpha, ulong a, nint aLayout, ulong b, nint bLayout, void* beta, ulong c, nint cLayout, ulong d, nint dLayout, Algorithm* algorithm, ulong workspace, nuint workspaceBytes, nint stream);
}
