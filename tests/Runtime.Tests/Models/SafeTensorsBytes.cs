using System.Buffers.Binary;
using System.Text;

namespace TenantLora.Runtime.Tests.Models;

/// <summary>Writes safetensors files, right ones and wrong ones.</summary>
internal static class SafeTensorsBytes
{
    /// <summary>A header, whatever it says, and the data behind it.</summary>
    public static byte[] Raw(string header, int dataBytes) => Raw(Encoding.UTF8.GetBytes(header), new byte[dataBytes]);

    public static byte[] Raw(byte[] header, byte[] data)
    {
        var file = new byte[8 + header.Length + data.Length];
        BinaryPrimitives.WriteInt64LittleEndian(file, header.Length);
        header.CopyTo(file, 8);
        data.CopyTo(file, 8 + header.Length);
        return file;
    }

    /// <summary>Tensors one after another, as the reference writer lays them out.</summary>
    public static byte[] Of(IEnumerable<(string Name, string Type, long[] Shape, byte[] Data)> tensors)
    {
        var header = new StringBuilder("{\"__metadata__\":{\"format\":\"pt\"}");
        var data = new MemoryStream();
        foreach (var (name, type, shape, bytes) in tensors)
        {
            header.Append($",\"{name}\":{{\"dtype\":\"{type}\",\"shape\":[{string.Join(',', shape)}],\"data_offsets\":[{data.Length},{data.Length + bytes.Length}]}}");
            data.Write(bytes);
        }

        header.Append('}').Append(' ', (8 - ((header.Length + 1) % 8)) % 8);
        return Raw(Encoding.UTF8.GetBytes(header.ToString()), data.ToArray());
    }

    public static byte[] Floats(params float[] values) => [.. values.SelectMany(BitConverter.GetBytes)];

    public static byte[] Halves(params float[] values) => [.. values.SelectMany(v => BitConverter.GetBytes((Half)v))];

    /// <summary>bf16, cut, not rounded.</summary>
    public static byte[] Brains(params float[] values) => [.. values.SelectMany(v => BitConverter.GetBytes((ushort)(BitConverter.SingleToUInt32Bits(v) >> 16)))];
}
