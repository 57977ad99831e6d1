"""Makes the table in `src/quantized/reference.rs`: hashes of rows that MLX's CPU device quantizes and dequantizes.

Run it with the Python package mlx 0.32.2, and copy its output into that table.
"""

import mlx.core as mx, numpy as np
mx.set_default_device(mx.cpu)
M=(1<<64)-1
def numbers(seed,n):
    st=(seed*0x9e3779b97f4a7c15 & M)|1
    out=[]
    for _ in range(n):
        st^=(st<<13)&M; st^=st>>7; st^=(st<<17)&M
        out.append(np.float32(st>>40)/np.float32(1<<23)-np.float32(1.0))
    return np.array(out,np.float32)
def fnv(b):
    h=0xcbf29ce484222325
    for x in b: h=((h^x)*0x100000001b3)&M
    return h
def rows(dt):
    # kinds of rows: plain, all positive, all negative, constant, zeros, tiny, one outlier, two values
    x=numbers(7,8*128).reshape(8,128).copy()
    x[1]=np.abs(x[1])+np.float32(0.5); x[2]=-np.abs(x[2])-np.float32(2); x[3]=np.float32(0.3); x[4]=0
    x[5]*=np.float32(1e-8); x[6,17]=np.float32(40); x[7]=np.where(x[7]>0,np.float32(1),np.float32(-1))
    return mx.array(x).astype(dt)
for name,dt in (("f32",mx.float32),("f16",mx.float16),("bf16",mx.bfloat16)):
    w=rows(dt)
    for bits in (2,3,4,5,6,8):
        for g in (32,64,128):
            q,s,b=mx.quantize(w,group_size=g,bits=bits)
            d=mx.dequantize(q,s,b,group_size=g,bits=bits)
            v=lambda a: np.array(a if a.dtype==mx.uint32 else a.view(mx.uint16 if a.dtype!=mx.float32 else mx.uint32)).tobytes()
            print(f'    ("{name}", {bits}, {g}, 0x{fnv(v(q)):016x}, 0x{fnv(v(s)+v(b)):016x}, 0x{fnv(v(d)):016x}),')
