using System.Text.Json;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

public sealed class PythonJsonTests
{
    /// <summary>The right sides are Python's: json.dumps(json.loads(left), ensure_ascii=False).</summary>
    [Theory]
    [InlineData("""{"a":1,"b":[true,false,null],"c":{}}""", """{"a": 1, "b": [true, false, null], "c": {}}""")]
    [InlineData("""{"a":1,"b":2,"a":3}""", """{"a": 3, "b": 2}""")]
    [InlineData("""["\u00e9\u4e2d\ud83c\udf31\u2028","\"\\\/\b\f\n\r\t\u0001\u007f"]""", "[\"é中🌱\u2028\", \"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\u007f\"]")]
    [InlineData("[0,-0,12345678901234567890123,-7]", "[0, 0, 12345678901234567890123, -7]")]
    [InlineData("[1.0,-0.0,0.10,1e2,123456.789,1e15,1e16,1.5e16,12345678901234567890.0]", "[1.0, -0.0, 0.1, 100.0, 123456.789, 1000000000000000.0, 1e+16, 1.5e+16, 1.2345678901234567e+19]")]
    [InlineData("[0.0001,0.00001,1.25e-7,5e-324,1.7976931348623157e308,1e400,-1e400,9007199254740993.0]", "[0.0001, 1e-05, 1.25e-07, 5e-324, 1.7976931348623157e+308, Infinity, -Infinity, 9007199254740992.0]")]
    [InlineData("[0.30000000000000004,9.999999999999999e15,99999999999999990.0,0.00012,1e23]", "[0.30000000000000004, 1e+16, 9.999999999999998e+16, 0.00012, 1e+23]")]
    public void Json_is_spelled_as_Python_spells_it(string json, string expected) => Assert.Equal(expected, PythonJson.Write(JsonDocument.Parse(json).RootElement));
}
