using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary>
/// The judge of everything that works on compact adapters: the plain LoRA pair that a module stands for, by plain loops. Shared ranks come
/// first, as in the PRoLoRA authors' code: A = [A0, Roll(A0, −s_A), Roll(A0, −2·s_A)…] along the inputs, B the same along the outputs.
/// </summary>
internal static class DenseLora
{
    /// <summary>A (r×h), B (o×r): y += module.Scale · B(A(x)).</summary>
    public static (float[,] A, float[,] B) Expand(LoraModule module)
    {
        var (shared, unshared) = (module.SharedRank, module.UnsharedRank);
        var a = new float[shared + unshared, module.Inputs];
        var b = new float[module.Outputs, shared + unshared];
        if (module.A is not null && module.B is not null)
        {
            var (a0, b0) = (Values(module.A), Values(module.B));
            for (var k = 0; k < shared; k++)
            {
                for (var col = 0; col < module.Inputs; col++)
                {
                    var (chunk, t) = (col / module.ChunkWidth, col % module.ChunkWidth);
                    a[k, col] = a0[(k + (chunk * module.ShiftA)) % shared, t];
                }

                for (var row = 0; row < module.Outputs; row++)
                {
                    var (chunk, t) = (row / module.ChunkHeight, row % module.ChunkHeight);
                    b[row, k] = b0[t, (k + (chunk * module.ShiftB)) % shared];
                }
            }
        }

        if (module.AVec is not null && module.BVec is not null)
        {
            var (au, bu) = (Values(module.AVec), Values(module.BVec));
            for (var k = 0; k < unshared; k++)
            {
                for (var col = 0; col < module.Inputs; col++) a[shared + k, col] = au[k, col];
                for (var row = 0; row < module.Outputs; row++) b[row, shared + k] = bu[k, row];
            }
        }

        return (a, b);
    }

    /// <summary>What the adapter adds to W·x.</summary>
    public static float[] Apply(LoraModule module, ReadOnlySpan<float> x)
    {
        var (a, b) = Expand(module);
        var y = new float[module.Outputs];
        for (var k = 0; k < a.GetLength(0); k++)
        {
            double z = 0;
            for (var col = 0; col < x.Length; col++) z += (double)a[k, col] * x[col];
            for (var row = 0; row < y.Length; row++) y[row] += (float)(module.Scale * b[row, k] * z);
        }

        return y;
    }

    /// <summary>A host tensor as numbers.</summary>
    public static unsafe float[,] Values(HostTensor tensor)
    {
        var values = new float[tensor.Rows, tensor.Cols];
        for (var row = 0; row < tensor.Rows; row++)
        {
            for (var col = 0; col < tensor.Cols; col++)
            {
                var i = ((long)row * tensor.Cols) + col;
                values[row, col] = tensor.Type switch
                {
                    DType.F32 => ((float*)tensor.Data)[i],
                    DType.F16 => (float)((Half*)tensor.Data)[i],
                    _ => BitConverter.UInt32BitsToSingle((uint)((ushort*)tensor.Data)[i] << 16),
                };
            }
        }

        GC.KeepAlive(tensor);
        return values;
    }
}
