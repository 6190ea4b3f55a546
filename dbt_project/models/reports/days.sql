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

    -- numbers, since a series of days is one of times in the session's time zone, and where clocks change at midnight,
    -- its last day is beyond the end
    select range_of_days.first_day + day.number as create_date
    from range_of_days
    cross join lateral generate_series(0, range_of_days.last_day - range_of_days.first_day) as day (number)

)

select * from days
