-- Logins by UTC hour.
with

logins as (

    select * from {{ ref('user_logins') }}

),

counted as (

    select
        date_trunc('hour', logged_in_at, 'utc') as hour,
        count(*) as logins,
        count(distinct user_id) as users
    from logins
    group by 1

)

select * from counted
