//! Arithmetic of integers and floats.

use super::ast::Operator;
use super::error::{Error, Result};
use super::value::Value;

/// Python's `int` of a float.
pub(super) fn whole(number: f64) -> Result<i128> {
    if number.is_nan() {
        return Err(Error::new("cannot convert float NaN to integer"));
    }
    if number.is_infinite() {
        return Err(Error::new("cannot convert float infinity to integer"));
    }
    if number.abs() >= 1.7e38 {
        return Err(Error::limit("the result has more than 127 bits"));
    }
    Ok(number as i128)
}

pub(super) fn too_large() -> Error {
    Error::limit("the result has more than 127 bits")
}

pub(super) fn negative(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(of) => Ok(Value::Float(-of)),
        of => match of.as_int() {
            Some(of) => of.checked_neg().map(Value::Int).ok_or_else(too_large),
            None => Err(Error::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
        },
    }
}

pub(super) fn positive(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(of) => Ok(Value::Float(*of)),
        of => match of.as_int() {
            Some(of) => Ok(Value::Int(of)),
            None => Err(Error::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
        },
    }
}

pub(super) fn floats(operator: Operator, x: f64, y: f64) -> Result<Value> {
    let by_zero = |what: &str| Error::new(format!("float {what} by zero"));
    Ok(Value::Float(match operator {
        Operator::Add => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide if y == 0.0 => return Err(by_zero("division")),
        Operator::Divide => x / y,
        Operator::FloorDivide if y == 0.0 => return Err(by_zero("floor division")),
        Operator::FloorDivide => floor_divide(x, y),
        Operator::Modulo if y == 0.0 => return Err(by_zero("modulo")),
        Operator::Modulo => modulo(x, y),
        Operator::Power => return power(x, y),
    }))
}

pub(super) fn int(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let by_zero = |what: &str| Error::new(format!("integer {what} by zero"));
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err(Error::new("division by zero")),
        Operator::Divide => return Ok(Value::Float(quotient(a, b))),
        Operator::FloorDivide if b == 0 => return Err(by_zero("division or modulo")),
        Operator::FloorDivide => a.checked_div_euclid(b).map(|quotient| {
            // Euclid's remainder is never negative; Python's has the sign of the divisor.
            if b < 0 && a.rem_euclid(b) != 0 { quotient - 1 } else { quotient }
        }),
        Operator::Modulo if b == 0 => return Err(by_zero("modulo")),
        Operator::Modulo => {
            a.checked_rem_euclid(b).map(|rest| if b < 0 && rest != 0 { rest + b } else { rest })
        }
        Operator::Power if b < 0 => return power(a as f64, b as f64),
        Operator::Power => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            _ => None,
        },
    };
    result.map(Value::Int).ok_or_else(too_large)
}

/// The float nearest to a quotient of integers, each of which may have more digits than a float.
fn quotient(a: i128, b: i128) -> f64 {
    let (top, bottom) = (a.unsigned_abs(), b.unsigned_abs());
    // The remainder becomes a bit below the significant digits, so the result is rounded only once.
    let (mut whole, mut rest, mut shift) = (top / bottom, top % bottom, 0);
    while rest != 0 && whole < 1 << 63 {
        // Both are below 2^127.
        (whole, rest) = (whole << 1, rest << 1);
        if rest >= bottom {
            (whole, rest) = (whole | 1, rest - bottom);
        }
        shift += 1;
    }
    let magnitude = (whole | u128::from(rest != 0)) as f64 * 0.5_f64.powi(shift);
    if (a < 0) != (b < 0) { -magnitude } else { magnitude }
}

fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest == 0.0 {
        return 0.0_f64.copysign(y);
    }
    if (rest < 0.0) == (y < 0.0) { rest } else { rest + y }
}

fn floor_divide(x: f64, y: f64) -> f64 {
    let quotient = (x - modulo(x, y)) / y;
    if quotient == 0.0 {
        return 0.0_f64.copysign(x / y);
    }
    // As in CPython: the quotient is whole except for rounding.
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

fn power(x: f64, y: f64) -> Result<Value> {
    if x == 0.0 && y < 0.0 {
        return Err(Error::new("0.0 cannot be raised to a negative power"));
    }
    if x < 0.0 && x.is_finite() && y.is_finite() && y.fract() != 0.0 {
        return Err(Error::new("complex numbers are not supported"));
    }
    let result = x.powf(y);
    if result.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(Error::new("(34, 'Numerical result out of range')"));
    }
    Ok(Value::Float(result))
}
