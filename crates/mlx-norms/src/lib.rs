#[cfg(test)]
mod tests {
    #[test]
    fn t() {
        let a = mlx_rs::Array::from_slice(&[1f32, 2.0], &[2]);
        println!("{}", a.add(&a).unwrap());
        let b = a.as_dtype(mlx_rs::Dtype::Bfloat16).unwrap();
        println!("{:?}", b.try_as_slice::<half::bf16>());
    }
}
