-- Each day from the first login to the last: metrics by day have one for days without logins too.
with

logins as (

    select * from {{ ref('user_logins') }}

),

range_of_days as (

    select
        min(create_date) as first_day,
        max(create_date) as last_day
    from logins

),

days as (

    select day.day::date as create_date
    from range_of_days
    cross join lateral generate_series(range_of_days.first_day, range_of_days.last_day, interval '1 day') as day (day)

)

select * from days
